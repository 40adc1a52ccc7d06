"""The command that runs a task: it starts ``python -m tasks.run`` on every rank."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from tasks.kinds import CONFIG_FILE, choose
from utils.config import peek
from utils.errors import UserError, one_line_errors
from utils.flags import add_config, add_evaluate, add_output, add_overrides, add_resume, add_task, parse
from utils.launcher import add_placement, check_placement, torchrun
from utils.processes import GRACE_S

EXAMPLES = """examples:
  python run.py --task pretrain --output runs/demo
  python run.py --config configs/pretrain/base_4m.yaml --gpus 8 --output runs/base_4m
  python run.py --config C --gpus 8 --evaluate init.checkpoint=base_4m.safetensors
  python run.py --output runs/base_4m --resume --evaluate
  python run.py --config C --gpus 8 --nodes 4 --node-rank 0 --master node0:29500 --output runs/base_4m
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
    add_overrides(parser)
    arguments = parse(parser, argv)
    check_placement(parser, arguments)
    return arguments


def config_of(arguments: argparse.Namespace) -> str | None:
    """The config of the command line, or that of the run that resumes."""
    if arguments.config is not None or arguments.task is not None or not (arguments.resume and arguments.output):
        return arguments.config
    saved = Path(arguments.output) / CONFIG_FILE
    if not saved.is_file():
        raise UserError(
            f"--output {arguments.output} --resume: holds no {CONFIG_FILE}; give the folder of a run, or --config"
        )
    return str(saved)


@one_line_errors
def main(argv: Sequence[str], lists: str = "") -> int:
    """Run a task under torchrun; returns the job's exit status."""
    arguments = parse_run(argv, lists)
    choice = choose(config_of(arguments), arguments.overrides, arguments.task)
    command = ["--module", "tasks.run", choice.source.argument, "--config", str(choice.config)]
    command += ["--output", arguments.output] if arguments.output else []
    command += ["--resume"] if arguments.resume else []
    command += ["--evaluate"] if arguments.evaluate else []
    # Ranks import this checkout from any working directory, and packages of the working directory do not hide it. (Where the
    # project is installed, this module is x2vlm.tasks.launch, and the folder is the one that holds x2vlm.)
    top = Path(__file__).parents[__name__.count(".")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(top), os.environ.get("PYTHONPATH")]))
    os.environ["PYTHONSAFEPATH"] = "1"
    return torchrun(arguments, [*command, *arguments.overrides], grace_of(choice.config, arguments.overrides))


def grace_of(config: Path, overrides: Sequence[str]) -> int:
    """``train.grace_s``; its default where the config cannot be read or has another kind of value, which the ranks report."""
    train = peek(config, overrides, "train")
    given = train.get("grace_s") if isinstance(train, dict) else None
    return given if isinstance(given, int) and given > 0 else GRACE_S
