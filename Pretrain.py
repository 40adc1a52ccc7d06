"""Multi-grained pre-training (X²-VLM, section 3): ``python Pretrain.py --config FILE [--output DIR] [key=value ...]``.

The script runs one process; ``run.py`` starts the task on many.
"""

import sys

from tasks.job import run_task
from utils.errors import one_line_errors


@one_line_errors
def main() -> int:
    """Run the task; returns the exit status."""
    return run_task(sys.argv[1:], "pretrain")


if __name__ == "__main__":
    sys.exit(main())
