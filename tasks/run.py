"""Run any task in one process, without a launcher: ``python -m tasks.run TASK [--config FILE] [--output DIR] [key=value ...]``.

TASK is a name in the table of tasks, a folder that holds ``task.py``, or a module. ``run.py`` starts this module on every rank.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from tasks.job import add_run_flags, run
from tasks.kinds import choose
from utils.errors import one_line_errors
from utils.flags import parse


@one_line_errors
def main(argv: Sequence[str]) -> int:
    """Run a task; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tasks.run", description="Run a task in one process, without a launcher.", allow_abbrev=False
    )
    parser.add_argument("task", metavar="TASK", help="a task's name, a folder with task.py, or a module")
    add_run_flags(parser)
    arguments = parse(parser, argv)
    choice = choose(
        arguments.config, arguments.overrides, arguments.task, remedy="give {config_task} instead of {task}"
    )
    return run(choice, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
