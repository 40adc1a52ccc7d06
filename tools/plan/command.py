"""The command line of ``run.py plan``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict

from utils.launcher import let_segments_grow

from engine.devices import ASSUMED_UTILISATION, PEAKS
from tools.plan.planner import Planner
from tools.plan.scaling import RANKS
from tools.plan.table import as_table
from tools.plan.target import ASSUMED_GPU
from utils.distributed import process_group
from utils.errors import one_line_errors
from utils.flags import add_config, add_overrides, add_task, parse, positive, positive_real, share

EXAMPLES = """examples:
  python run.py plan --config configs/pretrain/base_4m.yaml --gpus 8 --memory 80 --gpu h100
  python run.py plan --config configs/pretrain/base_4m.yaml --nodes 8 --gpus 8 --memory 80 --network 40
  python run.py plan --config configs/vqa/vqa2_base_4m.yaml --gpus 4 --memory 24 --records 1000000 train.peak_tflops=71"""


def arguments_of(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the arguments after ``run.py plan``."""
    parser = argparse.ArgumentParser(
        prog="run.py plan",
        description="Find the largest micro-batch that fits, the accumulation for the global batch, and the time of a run: "
        "measured with a GPU, else estimated.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    flag = parser.add_argument
    add_config(parser)
    add_task(parser)
    flag("--gpus", type=positive, metavar="N", help="GPUs of the run; with --nodes, those of each node (default: 1)")
    nodes = f"nodes of the run; tells also what changes on {', '.join(map(str, RANKS))} GPUs"
    flag("--nodes", type=positive, metavar="N", help=nodes)
    network = (
        "bus bandwidth between nodes in 1e9 bytes/s, as all_reduce_perf of nccl-tests reports it (default: unknown)"
    )
    flag("--network", type=positive_real, metavar="GB/S", help=network)
    flag("--memory", type=positive_real, metavar="GB", help="memory of a whole GPU, in 1e9 bytes (default: this GPU's)")
    names = f"known: {', '.join(PEAKS)} (default: this GPU; without one, {ASSUMED_GPU}); for others, give train.peak_tflops=X"
    flag("--gpu", choices=list(PEAKS), metavar="NAME", help=names)
    utilisation = f"assumed fraction of the peak in an estimate (default: {ASSUMED_UTILISATION})"
    flag("--utilisation", type=share, default=ASSUMED_UTILISATION, metavar="U", help=utilisation)
    batch = "examples of the leading stream per step (default: the config's train.global_batch)"
    flag("--global-batch", type=positive, metavar="N", help=batch)
    flag(
        "--records",
        type=positive,
        metavar="N",
        help="records of the leading stream (of fine-tuning: captions, phrases, questions, statements), for the time of a run in "
        "epochs",
    )
    flag("--estimate", action="store_true", help="do not measure, even with a GPU")
    flag("--json", action="store_true", help="print JSON")
    add_overrides(parser)
    arguments = parse(parser, argv)
    if arguments.nodes is not None and arguments.gpus is None:
        parser.error(f"--nodes {arguments.nodes} needs --gpus N, the GPUs of each node")
    if arguments.network is not None and arguments.nodes is None:
        parser.error(f"--network {arguments.network:g} needs --nodes N: without it, no time on the network is told")
    arguments.gpus = arguments.gpus or 1
    return arguments


@one_line_errors
def main(argv: Sequence[str]) -> int:
    """Print the plan."""
    arguments = arguments_of(argv)
    let_segments_grow()
    with process_group():  # sets up a GPU as a run does
        plan = Planner(arguments).plan()
    sys.stdout.write((json.dumps(asdict(plan), indent=2) if arguments.json else as_table(plan)) + "\n")
    return 0
