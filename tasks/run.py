"""Runs any task in one process, without a launcher: ``python -m tasks.run TASK [--config FILE] [--output DIR] [key=value ...]``.

TASK is a name in the table of tasks, a folder that contains ``task.py``, or a module. ``run.py`` runs this module on every rank.
"""

from __future__ import annotations

import sys

from tasks.job import RunFlags, run
from utils.commands import call
from utils.flags import Override


def run_rank(task: str, /, *overrides: Override, flags: RunFlags = RunFlags()) -> int:
    """Run a task in one process, without a launcher.

    Args:
        task: a task's name, a folder with task.py, or a module.
        overrides: config values to override, as key=value.
    """
    from tasks.kinds import choose  # imports the YAML parser, which would slow down --help

    return run(choose(flags.config, overrides, task, remedy="pass {config_task} instead of {task}"), flags)


if __name__ == "__main__":
    sys.exit(call(run_rank, sys.argv[1:], "python -m tasks.run"))
