"""``run.py plan``: computes the largest micro-batch that fits, and how long a run takes."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

from tasks.binding import bind_run
from tools.plan.flags import PlanFlags
from utils.flags import Override


def plan(*overrides: Override, flags: PlanFlags = PlanFlags(), json_: bool = False) -> int:
    """Find the largest micro-batch that fits, the number of micro-batches to accumulate for the global batch, and how long a run
    takes. The results are measured if there is a GPU, and estimated otherwise.

    Args:
        overrides: values that replace the config's, as key=value.
        json_: print JSON.

    Examples:
        python run.py plan --config configs/pretrain/base_4m.yaml --gpus 8 --memory 80 --gpu h100
        python run.py plan --config configs/pretrain/base_4m.yaml --nodes 8 --gpus 8 --memory 80 --network 40
        python run.py plan --config configs/vqa/vqa2_base_4m.yaml --gpus 4 --memory 24 --records 1000000 train.peak_tflops=71
    """
    flags.check()
    run = bind_run(flags.config, overrides, flags.task)
    flags.require_memory()
    # Imported here, so that --help, misspelled keys and a missing --memory do not wait for the models.
    from launch.torchrun import use_expandable_segments
    from tools.plan.planner import Planner
    from tools.plan.table import as_table
    from utils.distributed import process_group

    use_expandable_segments()
    with process_group():  # sets up a GPU as a run does
        planned = Planner(run, flags).plan()
    sys.stdout.write((json.dumps(asdict(planned), indent=2) if json_ else as_table(planned)) + "\n")
    return 0
