"""Visual grounding, RefCOCO+ (X²-VLM, section 4.3 and appendix A.1):

``python Grounding.py --config FILE [--output DIR] [--evaluate] [key=value ...]``

This script runs the task in a single process; ``run.py`` can start several processes.
"""

import sys

from tasks.run import run_script
from utils.errors import one_line_errors


@one_line_errors
def main() -> int:
    """Runs the task. Returns the exit status."""
    return run_script(sys.argv[1:], "grounding")


if __name__ == "__main__":
    sys.exit(main())
