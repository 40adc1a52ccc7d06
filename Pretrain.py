"""Multi-grained pre-training (X²-VLM, section 3): ``python Pretrain.py --config FILE [--output DIR] [key=value ...]``.

One process without a launcher; ``run.py`` starts it on many.
"""

import sys
from pathlib import Path

from tasks.job import run_task
from tasks.pretrain import PretrainConfig, PretrainTask
from utils.errors import one_line_errors


@one_line_errors
def main() -> int:
    return run_task(sys.argv[1:], "pretrain", PretrainConfig, PretrainTask, Path(__file__).parent)


if __name__ == "__main__":
    sys.exit(main())
