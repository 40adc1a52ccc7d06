"""Question answering, about images (VQA v2) and videos (MSRVTT-QA, MSVD-QA; X²-VLM, sections 4.3, 4.5, appendix A.1):

``python VQA.py --config FILE [--output DIR] [--evaluate] [key=value ...]``

A config with ``task: video_qa`` is one about videos. One process without a launcher; ``run.py`` starts it on many.
"""

import sys
from pathlib import Path

from tasks.job import run_task
from tasks.video_qa import VideoQAConfig, VideoQATask
from tasks.vqa import VQAConfig, VQATask
from utils.errors import one_line_errors


@one_line_errors
def main() -> int:
    others = {"video_qa": (VideoQAConfig, VideoQATask)}
    return run_task(sys.argv[1:], "vqa", VQAConfig, VQATask, Path(__file__).parent, others)


if __name__ == "__main__":
    sys.exit(main())
