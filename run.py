"""Run a task: ``python run.py --task pretrain [--config FILE] [--gpus N | --cpu N] [--output DIR] [key=value ...]``."""

import sys
from pathlib import Path

from tasks import TASKS
from utils.launcher import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], TASKS, Path(__file__).parent))
