"""Multi-grained pre-training (X²-VLM, section 3): ``python Pretrain.py --config FILE [--output DIR] [key=value ...]``.

This script runs the task in a single process; ``run.py`` can start several processes.
"""

import sys

from tasks.run import run_script
from utils.errors import one_line_errors


@one_line_errors
def main() -> int:
    """Runs the task. Returns the exit status."""
    return run_script(sys.argv[1:], "pretrain")


if __name__ == "__main__":
    sys.exit(main())
