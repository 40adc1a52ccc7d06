"""Runs any task in one process, without a launcher: ``python -m tasks.run TASK [--config FILE] [--output DIR] [key=value ...]``.

TASK is a name in the table of tasks, a folder that contains ``task.py``, or a module.
"""

from __future__ import annotations

import sys

from tasks.job import RunFlags, run_task
from utils.commands import call
from utils.flags import Override


def run_alone(task: str, /, *overrides: Override, flags: RunFlags = RunFlags()) -> int:
    """Run a task in one process, without a launcher.

    Args:
        task: a task's name, a folder with task.py, or a module.
        overrides: config values to override, as key=value.
    """
    from tasks.binding import bind_run  # imports pydantic, which would slow down --help

    return run_task(bind_run(flags.config, overrides, task), flags)


if __name__ == "__main__":
    sys.exit(call(run_alone, sys.argv[1:], "python -m tasks.run"))
