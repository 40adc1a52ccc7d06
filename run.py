"""Run a task: ``python run.py --task pretrain [--config FILE] [--gpus N | --cpu N] [--output DIR] [key=value ...]``, or tell
beforehand what fits and how long it takes: ``python run.py plan --config FILE --gpus N --memory GB``."""

import sys
from pathlib import Path

from tasks import TASKS
from utils.launcher import main

if __name__ == "__main__":
    if sys.argv[1:2] == ["plan"]:
        from tools.plan.command import main as plan

        sys.exit(plan())
    sys.exit(main(sys.argv[1:], TASKS, Path(__file__).parent))
