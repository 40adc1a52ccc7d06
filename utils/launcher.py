"""Start a job on this machine's GPUs or cores, alone or as one of many nodes, through torchrun."""

from __future__ import annotations

import argparse
import itertools
import logging
import os
import re
import shutil
import subprocess
from collections.abc import Sequence

from utils.cores import usable_cores
from utils.errors import UserError
from utils.flags import positive

ALLOCATOR = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
"""What torch reads its CUDA allocator's settings from."""

DEVICE = re.compile(r"\d|GPU-|MIG-")
"""How a valid entry of CUDA_VISIBLE_DEVICES begins."""


def add_placement(parser: argparse.ArgumentParser) -> None:
    """The flags that say on how many devices and nodes a job runs."""
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


def check_placement(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """End the program with a line and status 2 where the flags of :func:`add_placement` do not go together."""
    if arguments.nodes > 1 and not arguments.master:
        parser.error("--nodes needs --master HOST:PORT")
    if arguments.master and arguments.nodes == 1:
        parser.error("--master needs --nodes N")
    host, _, port = (arguments.master or "host:0").rpartition(":")
    if not host or not port.isdigit():
        parser.error(f"--master {arguments.master!r} is not of the form HOST:PORT")
    if not 0 <= arguments.node_rank < arguments.nodes:
        parser.error(f"--node-rank {arguments.node_rank} is not within 0 .. {arguments.nodes - 1}")


def torchrun(arguments: argparse.Namespace, command: Sequence[str]) -> int:
    """Run a command on every rank, and return the job's exit status (128 + n if signal n ended it).

    Args:
        arguments: of :func:`add_placement`.
        command: a script and its arguments, or ``--module``, a module and its arguments.

    Raises:
        UserError: if there are too few GPUs, or the nodes do not find each other.
    """
    processes = _processes(arguments)
    # Imported here, so that --help and mistakes answer at once.
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import get_args_parser, run

    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, usable_cores() // processes)))
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
    """GPUs that this process may use, without importing torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        # CUDA stops at the first entry that is no device: "-1" and "" hide all.
        return len(list(itertools.takewhile(DEVICE.match, (name.strip() for name in visible.split(",")))))
    if not shutil.which("nvidia-smi"):
        return 0
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())
