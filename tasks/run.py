"""Runs any task in one process, without a launcher: ``python -m tasks.run TASK [--config FILE] [--output DIR] [key=value ...]``,
or the script of a task, such as ``Pretrain.py``.

TASK is a name in the table of tasks, a folder that contains ``task.py``, or a module.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from tasks import TASKS
from tasks.run_flags import RunFlags
from utils.commands import execute
from utils.errors import UserError, one_line_errors
from utils.flags import Override

USAGE = """Usage: python -m tasks.run TASK [FLAGS] [key=value ...]

Run a task in one process, without a launcher. TASK can also be a folder that contains task.py, or a module.
python -m tasks.run TASK --help shows the flags.
"""


def run_script(argv: Sequence[str], name: str) -> int:
    """Runs a task in this process, as the scripts such as ``Pretrain.py`` do; returns the exit status.

    Args:
        argv: the command-line arguments.
        name: name of the task in the table, or the folder or module of another task.

    Raises:
        UserError: if the command line, the config or the data are invalid.
    """

    def run(*overrides: Override, flags: RunFlags = RunFlags()) -> int:
        from tasks.binding import bind_run  # mistakes in a config do not wait for torch

        bound = bind_run(flags.config, overrides, name)
        from tasks.job import run_task

        return run_task(bound, flags)

    help_text, program = f"the task {name}", f"python -m tasks.run {name}"
    if name in TASKS:
        help_text, program = TASKS[name].help, TASKS[name].script
    overrides = "config values to override, as key=value."
    run.__doc__ = f"Run this task in one process: {help_text}.\n\nArgs:\n    overrides: {overrides}"
    return execute(run, argv, program)


@one_line_errors
def main(argv: Sequence[str]) -> int:
    """Runs the task that the first argument names. Returns the exit status."""
    if argv and argv[0] in ("-h", "--help"):
        tasks = "".join(f"  {name:13}{entry.help}\n" for name, entry in TASKS.items())
        sys.stdout.write(f"{USAGE}\ntasks:\n{tasks}")
        return 0
    if not argv or argv[0].startswith("-"):
        raise UserError("pass the task first, as python -m tasks.run TASK", remedy="--help lists the tasks")
    return run_script(argv[1:], argv[0])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
