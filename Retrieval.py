"""Image-text retrieval (X²-VLM, section 4.3 and appendix A.1):

``python Retrieval.py --config FILE [--output DIR] [--evaluate] [key=value ...]``

The script runs one process; ``run.py`` starts the task on many.
"""

import sys

from tasks.job import run_task
from utils.errors import one_line_errors


@one_line_errors
def main() -> int:
    """Run the task; returns the exit status."""
    return run_task(sys.argv[1:], "retrieval")


if __name__ == "__main__":
    sys.exit(main())
