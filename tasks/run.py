"""Runs any task in one process, without a launcher: ``python -m tasks.run TASK [--config FILE] [--output DIR] [key=value ...]``.

TASK is a name in the table of tasks, a folder that contains ``task.py``, or a module.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from tasks.job import run_script
from utils.errors import UserError, one_line_errors


@one_line_errors
def main(argv: Sequence[str]) -> int:
    """Runs the task that the first argument names. Returns the exit status."""
    if not argv or argv[0].startswith("-"):
        raise UserError("pass the task first, as python -m tasks.run TASK; TASK --help shows the flags")
    return run_script(argv[1:], argv[0])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
