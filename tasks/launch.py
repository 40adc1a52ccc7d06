"""The command that runs a task: it starts ``python -m tasks.run`` on every rank."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from engine.run_files import CONFIG_FILE
from tasks import run, slurm
from tasks.kinds import Choice, choose
from tasks.known_keys import known_keys
from utils.clusters import ONE_NODE, Place, nodes_left_out, place_of
from utils.config import peek, why_no_file
from utils.errors import UserError, one_line_errors
from utils.flags import add_config, add_evaluate, add_output, add_overrides, add_resume, add_task, add_wait, parse
from utils.folder_lock import WAIT_S
from utils.launcher import MAX_RESTARTS, add_placement, become_rank, check_placement, processes_of, torchrun
from utils.processes import GRACE_S

TOP = Path(__file__).parents[__name__.count(".")]
"""The folder of this checkout; where the project is installed, this module is x2vlm.tasks.launch, and the folder holds x2vlm."""

EXAMPLES = """examples:
  python run.py --task pretrain --output runs/demo
  python run.py --config configs/pretrain/base_4m.yaml --gpus 8 --output runs/base_4m
  python run.py --config C --gpus 8 --evaluate init.checkpoint=base_4m.safetensors
  python run.py --output runs/base_4m --resume --evaluate
  python run.py --config C --gpus 8 --nodes 4 --node-rank 0 --master node0:29500 --output runs/base_4m
  python run.py --config C --gpus 8 --nodes 1:2 --master node0:29500 --output runs/base_4m --resume
  python run.py --config C --output runs/base_4m --slurm --nodes 4 --gpus 8 --time 24:00:00 --partition gpu --dry-run
  python run.py --task my/counting --cpu 2 optim.lr=3e-5"""


def parse_run(argv: Sequence[str], lists: str = "") -> argparse.Namespace:
    """Parse the arguments of a run; a wrong one ends the program with one line and status 2. ``lists``: end of the help."""
    parser = argparse.ArgumentParser(
        prog="run.py",
        description="Run a task on the CPU, on GPUs, or on many nodes; or run another command.",
        epilog=f"{lists}{EXAMPLES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_task(parser)
    add_config(parser)
    add_placement(parser)
    add_output(parser)
    add_resume(parser)
    add_evaluate(parser)
    add_wait(parser)
    parser.add_argument(
        "--max-restarts",
        type=int,
        metavar="N",
        help=f"failures on a node after which a job with --nodes MIN:MAX ends (default: {MAX_RESTARTS})",
    )
    slurm.add_flags(parser)
    add_overrides(parser)
    arguments = parse(parser, argv, known_keys())
    slurm.check_flags(parser, arguments)
    check_placement(parser, arguments)
    if arguments.max_restarts is not None and (arguments.slurm or (arguments.nodes and not arguments.nodes.elastic)):
        parser.error("--max-restarts is for --nodes MIN:MAX without --slurm; leave it out")
    return arguments


def config_of(arguments: argparse.Namespace) -> str | None:
    """The config of the command line, or that of the run that resumes."""
    if arguments.config is not None or arguments.task is not None or not (arguments.resume and arguments.output):
        return arguments.config
    saved = Path(arguments.output) / CONFIG_FILE
    if not saved.is_file():
        fact = f"its {CONFIG_FILE} {why_no_file(saved)}" if saved.exists() else f"holds no {CONFIG_FILE}"
        raise UserError(f"--output {arguments.output} --resume: {fact}; give the folder of a run, or --config")
    return str(saved)


@one_line_errors
def main(argv: Sequence[str], lists: str = "") -> int:
    """Run a task under torchrun, as a rank, or as a job of SLURM; returns the exit status."""
    arguments = parse_run(argv, lists)
    choice = choose(config_of(arguments), arguments.overrides, arguments.task)
    choice.check_keys()
    if arguments.slurm:
        return slurm.submit(choice, arguments)
    place = place_of(arguments, os.environ)
    if place.name != "flags" and place.first:
        sys.stderr.write(f"started as {place}\n")
    elif place.nodes == ONE_NODE and (left_out := nodes_left_out(os.environ)):
        sys.stderr.write(f"{left_out}\n")
    words = [choice.source.argument, "--config", str(choice.config)]
    words += ["--output", arguments.output] if arguments.output else []
    words += ["--resume"] if arguments.resume else []
    words += ["--evaluate"] if arguments.evaluate else []
    words += ["--wait", str(arguments.wait)] if arguments.wait else []
    if place.rank is not None:
        become_rank(place)
        return run.main([*words, *arguments.overrides])
    processes = processes_of(arguments, place)
    if place.nodes.elastic:
        place = _elastic(choice, arguments, place, processes)
        words += [] if arguments.wait else ["--wait", str(WAIT_S)]
    # Ranks import this checkout from any working directory, and packages of the working directory do not hide it.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(TOP), os.environ.get("PYTHONPATH")]))
    os.environ["PYTHONSAFEPATH"] = "1"
    grace_s = grace_of(choice.config, arguments.overrides)
    return torchrun(place, processes, ["--module", "tasks.run", *words, *arguments.overrides], grace_s)


def _elastic(choice: Choice, arguments: argparse.Namespace, place: Place, processes: int) -> Place:
    """The place of a job whose nodes come and go, with its limit of restarts.

    Raises:
        UserError: if the run could not go on with each number of nodes.
    """
    nodes = place.nodes
    if not arguments.resume:
        raise UserError(
            f"--nodes {nodes} starts the ranks again, which go on from the newest checkpoint: add --resume (in an empty folder, "
            "the run starts anew)"
        )
    if nodes.least < nodes.most:
        from tasks.ranks import check_ranks  # imports torch

        check_ranks(choice, arguments, [count * processes for count in nodes.counts], f"--nodes {nodes}")
    return place if arguments.max_restarts is None else replace(place, max_restarts=arguments.max_restarts)


def grace_of(config: Path, overrides: Sequence[str]) -> int:
    """``train.grace_s``; its default where the config cannot be read or has another kind of value, which the ranks report."""
    train = peek(config, overrides, "train")
    given = train.get("grace_s") if isinstance(train, dict) else None
    return given if isinstance(given, int) and given > 0 else GRACE_S
