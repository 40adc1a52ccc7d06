"""``run.py``'s command line, and the start of a job through torchrun."""

from __future__ import annotations

import argparse
import logging
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from utils.errors import UserError


class Entry(Protocol):
    """What the launcher needs to know of a task."""

    @property
    def script(self) -> str: ...

    @property
    def demo_config(self) -> str: ...

    @property
    def also(self) -> tuple[str, ...]: ...


EPILOG = """without --config, the task's demo config runs; key=value overrides any key of the config (optim.lr=3e-5).
examples:
  python run.py --task pretrain --output runs/demo
  python run.py --task pretrain --config configs/pretrain/base_4m.yaml --gpus 8 --output runs/base_4m
  python run.py --task retrieval --config C --gpus 8 --evaluate init.checkpoint=base_4m.safetensors
  python run.py --task pretrain --config C --gpus 8 --nodes 4 --node-rank 0 --master node0:29500 --output runs/base_4m
what fits on a GPU, and how long a run takes: python run.py plan --help"""


ALLOCATOR = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
"""What torch reads its CUDA allocator's settings from."""

EVALUATE = "do not train: measure the weights of init.checkpoint (with --resume: the run's own)"


def parse(argv: Sequence[str], tasks: Mapping[str, Entry]) -> argparse.Namespace:
    """Parse ``run.py``'s arguments; a wrong one ends the program with a line and status 2."""
    parser = argparse.ArgumentParser(
        prog="run.py",
        description="Run a task on the CPU, on GPUs, or on many nodes.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )

    def named(task: str) -> str:
        for name, entry in tasks.items():
            if task in entry.also:
                raise argparse.ArgumentTypeError(
                    f"{task!r} is picked by `task: {task}` in the config; give --task {name}"
                )
        return task

    parser.add_argument("--task", required=True, type=named, choices=list(tasks), help="what to run")
    parser.add_argument("--config", help="YAML file; see configs/")
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--gpus", type=positive, metavar="N", help="processes per node, one a GPU (default: every GPU there is)"
    )
    where.add_argument("--cpu", type=positive, metavar="N", help="N processes on the CPU (default without a GPU: 1)")
    parser.add_argument(
        "--nodes", type=positive, default=1, metavar="N", help="number of nodes; run the same line on each"
    )
    parser.add_argument("--node-rank", type=int, default=0, metavar="R", help="this node's number, from 0")
    parser.add_argument("--master", metavar="HOST:PORT", help="address of node 0; needed with --nodes")
    parser.add_argument("--output", metavar="DIR", help="folder of the run (default: runs/<task>/<config's name>)")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in --output")
    parser.add_argument("--evaluate", action="store_true", help=EVALUATE)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="values that replace the config's")
    arguments = parser.parse_intermixed_args(argv)
    wrong = [text for text in arguments.overrides if "=" not in text]
    if wrong:
        parser.error(f"{wrong[0]!r} is neither a flag nor of the form key=value")
    if arguments.nodes > 1 and not arguments.master:
        parser.error("--nodes needs --master HOST:PORT")
    if arguments.master and arguments.nodes == 1:
        parser.error("--master needs --nodes N")
    host, _, port = (arguments.master or "host:0").rpartition(":")
    if not host or not port.isdigit():
        parser.error(f"--master {arguments.master!r} is not of the form HOST:PORT")
    if not 0 <= arguments.node_rank < arguments.nodes:
        parser.error(f"--node-rank {arguments.node_rank} is not within 0 .. {arguments.nodes - 1}")
    return arguments


def positive(text: str) -> int:
    """An integer of at least 1, for argparse."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return int(text)


def positive_real(text: str) -> float:
    """A finite number above 0, for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return value


def share(text: str) -> float:
    """A number above 0 and at most 1, for argparse."""
    value = positive_real(text)
    if value > 1:
        raise argparse.ArgumentTypeError(f"{text!r} is more than 1, all there is")
    return value


def launch(argv: Sequence[str], tasks: Mapping[str, Entry], root: Path) -> int:
    """Run a task under torchrun and return the job's exit status (128 + n if signal n ended it)."""
    arguments = parse(argv, tasks)
    entry = tasks[arguments.task]
    config = Path(arguments.config) if arguments.config else root / entry.demo_config
    if not config.is_file():
        raise UserError(f"--config {config}: no such file")
    command = [str(root / entry.script), "--config", str(config)]
    command += ["--output", arguments.output] if arguments.output else []
    command += ["--resume"] if arguments.resume else []
    command += ["--evaluate"] if arguments.evaluate else []
    return _torchrun(arguments, [*command, *arguments.overrides])


def _torchrun(arguments: argparse.Namespace, command: list[str]) -> int:
    processes = _processes(arguments)
    # Imported here, so that --help and mistakes answer at once.
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import get_args_parser, run

    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    # A thread that waits for another gives its core away soon: the loader's workers, and whatever else runs, need it.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    flags = [f"--nproc-per-node={processes}"]
    if arguments.nodes > 1:
        host, _, port = arguments.master.rpartition(":")
        flags += [f"--nnodes={arguments.nodes}", f"--node-rank={arguments.node_rank}"]
        flags += [f"--master-addr={host}", f"--master-port={port}"]
    else:
        flags += ["--standalone"]
    # The job prints its own error; torchrun's report on it would bury that line.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    try:
        run(get_args_parser().parse_args([*flags, *command]))
    except ChildFailedError as error:
        status = error.get_first_failure()[1].exitcode
        return 128 - status if status < 0 else status
    except SignalException as stopped:
        return 128 + int(stopped.sigval)
    except (ConnectionError, TimeoutError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"the nodes did not find each other (--master {arguments.master}): {reason}") from None
    return 0


def _processes(arguments: argparse.Namespace) -> int:
    if arguments.cpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        return arguments.cpu
    found = _gpus()
    if arguments.gpus is not None and arguments.gpus > found:
        raise UserError(f"--gpus {arguments.gpus}: this machine has {found}; use --cpu N to run without")
    if found:
        let_segments_grow()
    return arguments.gpus or max(1, found)


def let_segments_grow() -> None:
    """Let torch extend its pieces of GPU memory, unless the user has set up the allocator: blocks whose sizes change with every
    step leave gaps in pieces of fixed size."""
    if not any(name in os.environ for name in ALLOCATOR):
        # The second name alone is not enough for torch 2.9, and for the first alone torch 2.9 warns.
        os.environ.update(dict.fromkeys(ALLOCATOR, "expandable_segments:True"))


def _gpus() -> int:
    """GPUs of this machine, without importing torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([name for name in visible.split(",") if name.strip()])
    if not shutil.which("nvidia-smi"):
        return 0
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())


def parse_script(argv: Sequence[str], task: str, entry: Entry, root: Path) -> argparse.Namespace:
    """The command line of a task's script: ``--config --output --resume key=value``."""
    parser = argparse.ArgumentParser(prog=Path(entry.script).name, allow_abbrev=False)
    parser.add_argument("--config", default=str(root / entry.demo_config), help="YAML file (default: the demo's)")
    parser.add_argument("--output", help="folder of the run (default: runs/<task>/<config's name>)")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in --output")
    parser.add_argument("--evaluate", action="store_true", help=EVALUATE)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    arguments = parser.parse_intermixed_args(argv)
    if arguments.output is None:
        apart = "-evaluate" if arguments.evaluate and not arguments.resume else ""
        arguments.output = str(Path("runs") / task / f"{Path(arguments.config).stem}{apart}")
    return arguments


def main(argv: Sequence[str], tasks: Mapping[str, Entry], root: Path) -> int:
    """``run.py``: a user's mistake is one line on stderr and status 2."""
    try:
        return launch(argv, tasks, root)
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
