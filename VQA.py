"""Question answering about images (VQA v2) and videos (MSRVTT-QA, MSVD-QA; X²-VLM, sections 4.3, 4.5, appendix A.1):

``python VQA.py --config FILE [--output DIR] [--evaluate] [key=value ...]``

Configs for videos set ``task: video_qa``. This script runs the task in a single process; ``run.py`` can start several processes.
"""

import sys

from tasks.run import run_script
from utils.errors import one_line_errors


@one_line_errors
def main() -> int:
    """Runs the task. Returns the exit status."""
    return run_script(sys.argv[1:], "vqa")


if __name__ == "__main__":
    sys.exit(main())
