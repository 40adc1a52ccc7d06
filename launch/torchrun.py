"""Start a job through torchrun: on this machine's GPUs or cores, as the only node or as one of many."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from launch.clusters import Place
from launch.placement import Placement
from utils.cores import usable_cores
from utils.errors import UserError
from utils.processes import ECHO_S, GRACE_S, MISTAKE, STOP_SIGNALS, signal_name, status_of_stop, stop_signals

ALLOCATOR = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
"""Environment variables with the settings of torch's CUDA allocator."""

HANDLED_BY_TORCHRUN = "SIGQUIT"
"""The signal that torchrun forwards by itself; the others are :data:`~utils.processes.STOP_SIGNALS`."""

MAX_RESTARTS = 10
"""Failures on a node after which an elastic job ends, unless a flag says otherwise; nodes that come do not count."""

RENDEZVOUS = "x2vlm"
"""Name of a job at its rendezvous."""

LOOPBACK = ("127.0.0.1", "localhost", "::1")

UNHEARD_S = 3.0
"""Seconds after which a signal is not handled any more by Python."""

DEVICE = re.compile(r"\d|GPU-|MIG-")
"""Start of a valid entry of CUDA_VISIBLE_DEVICES."""


def torchrun(place: Place, processes: int, command: Sequence[str], grace_s: int = GRACE_S) -> int:
    """Run a command on every rank; returns the job's exit status (128 + n if signal n ended it).

    A signal goes on to the ranks, which have ``grace_s`` seconds to end: 75 is the status then, by which schedulers requeue, and
    130 after Ctrl-C. It is 2 if a rank could not stop in order, such as when the checkpoint could not be written. A second signal
    ends all ranks at once.

    Args:
        place: the nodes of the job, and this one.
        processes: ranks on this node.
        command: a script and its arguments; or ``--module``, a module and its arguments.
        grace_s: seconds from a signal to the end of the ranks.

    Raises:
        UserError: if the nodes do not find each other.
    """
    # Imported here, so that --help and errors do not wait for torch.
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError
    from torch.distributed.run import get_args_parser, run

    from launch.elastic import run_elastic

    _share_cores(processes)
    flags = _torchrun_flags(place, processes)
    parser = get_args_parser()
    if "--signals-to-handle" in parser._option_string_actions:
        flags += [f"--signals-to-handle={HANDLED_BY_TORCHRUN}"]
    os.environ["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] = str(grace_s)
    _forward_first_signal(SignalException, grace_s)
    _silence_torchrun()
    torchrun_arguments = parser.parse_args([*flags, *command])
    with _statuses_of_ranks() as statuses:
        try:
            if place.nodes.elastic:
                run_elastic(torchrun_arguments, grace_s)
            else:
                run(torchrun_arguments)
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
            if failure.exitcode >= 0:
                return failure.exitcode
            sys.stderr.write(f"error: {_ended_by(rank, signal_name(-failure.exitcode))}\n")
            return 128 - failure.exitcode
        except SignalException as stopped:
            signum = int(stopped.sigval)
            if MISTAKE in statuses:  # the rank has printed its error
                return MISTAKE
            return status_of_stop(signum) if signum in STOP_SIGNALS else 128 + signum
        except (RendezvousError, ConnectionError, TimeoutError, RuntimeError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(f"the nodes did not find each other (--master {place.master}): {reason}") from None
    return 0


@contextlib.contextmanager
def _statuses_of_ranks() -> Iterator[list[int]]:
    """Inside, a list receives the exit statuses of this node's ranks when torchrun ends them after a signal; torchrun itself
    only reports the signal."""
    from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent

    statuses: list[int] = []
    shut_down = LocalElasticAgent._shutdown

    def shut_down_and_keep(agent: LocalElasticAgent, *arguments: Any, **options: Any) -> None:
        shut_down(agent, *arguments, **options)
        handlers = getattr(agent._pcontext, "subprocess_handlers", {})
        statuses[:] = [handler.proc.returncode for handler in handlers.values()]

    LocalElasticAgent._shutdown = shut_down_and_keep  # type: ignore[method-assign,assignment]
    try:
        yield statuses
    finally:
        LocalElasticAgent._shutdown = shut_down  # type: ignore[method-assign]


def _share_cores(processes: int) -> None:
    """Give each rank its share of this machine's cores, unless the user has set it."""
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, usable_cores() // processes)))
    # A waiting thread yields its core early: the loader's workers and other programs need it.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")


def _torchrun_flags(place: Place, processes: int) -> list[str]:
    """All that place the job, since torchrun takes what is left out from ``PET_*`` variables."""
    flags = [f"--nproc-per-node={processes}", f"--nnodes={place.nodes}"]
    if place.master is None:
        return [*flags, "--max-restarts=0", "--standalone"]
    host, _, port = place.master.rpartition(":")
    if place.nodes.elastic:
        restarts = MAX_RESTARTS if place.max_restarts is None else place.max_restarts
        flags += ["--rdzv-backend=c10d", f"--rdzv-endpoint={place.master}", f"--max-restarts={restarts}"]
        flags += [] if "PET_RDZV_ID" in os.environ else [f"--rdzv-id={RENDEZVOUS}"]
        # Else this node goes by its full name, which other processes of the same machine may not find.
        return [*flags, "--local-addr=127.0.0.1"] if host in LOOPBACK else flags
    flags += ["--rdzv-backend=static", "--rdzv-endpoint=", "--max-restarts=0", f"--node-rank={place.node_rank}"]
    return [*flags, f"--master-addr={host}", f"--master-port={port}"]


def _silence_torchrun() -> None:
    """The job prints its error itself; torchrun's report would bury that line. Each of torch's loggers has a level of its own."""
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("torch.distributed.elastic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)


def _forward_first_signal(exception: Callable[[str, signal.Signals], Exception], grace_s: int) -> None:
    """Raise torchrun's ``exception`` for the first stop signal, which makes it forward that; end at once on the second. The ranks
    end with their launcher (:func:`utils.processes.die_with_parent`)."""
    received_s: list[float] = []

    def receive(signum: int, _: object) -> None:
        now = time.monotonic()
        if received_s:
            if now - received_s[0] > ECHO_S:
                os._exit(128 + signum)
            return
        received_s.append(now)
        line = f"{signal_name(signum)}: the run stops after this step, within {grace_s} s; a second signal ends it at once\n"
        with contextlib.suppress(OSError):
            os.write(2, line.encode())  # sys.stderr may be in the middle of a line
        raise exception(f"got {signal_name(signum)}", signal.Signals(signum))

    for signum in stop_signals():
        signal.signal(signum, receive)
    _end_where_unheard(received_s)


def _end_where_unheard(received_s: Sequence[float]) -> None:
    """End this process some seconds after a stop signal that ``received_s`` does not have: it waits for other nodes in a function
    of torch, in which Python handles no signal. No rank has started then."""
    arrived, arrive = os.pipe()
    os.set_blocking(arrive, False)
    signal.set_wakeup_fd(arrive, warn_on_full_buffer=False)

    def watch() -> None:
        while signums := os.read(arrived, 1):
            signum = signal.Signals(signums[0])
            if signum in STOP_SIGNALS:
                time.sleep(UNHEARD_S)
                if not received_s:
                    os.write(2, f"{signal_name(signum)}: ended while waiting for the other nodes\n".encode())
                    os._exit(status_of_stop(signum))

    threading.Thread(target=watch, name="signals", daemon=True).start()


def _ended_by(rank: int, name: str) -> str:
    """The line for a rank that a signal ended."""
    reasons = {
        "SIGKILL": "where memory is full, the system kills: lower the batch size or data.workers",
        "SIGABRT": "a library gave up, such as NCCL after a time-out: the rank's log has its last lines",
        "SIGSEGV": "a library failed: its version may not fit the others",
        "SIGBUS": "shared memory or the disk is full: look at /dev/shm, or lower data.workers",
    }
    reason = f" ({reasons[name]})" if name in reasons else ""
    return f"rank {rank} was ended by {name}{reason}; the same command with --resume goes on from the newest checkpoint"


def processes_of(placement: Placement, place: Place) -> int:
    """Ranks on this node: by the flags, the scheduler, or one a GPU; without a GPU, they use the CPU.

    Raises:
        UserError: if there are too few GPUs.
    """
    if placement.cpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        return placement.cpu
    available = _gpus()
    if placement.gpus is not None and placement.gpus > available:
        raise UserError(f"--gpus {placement.gpus}: this machine has {available}; use --cpu N to run without")
    if available:
        let_segments_grow()
    if placement.gpus is None and place.processes is not None:
        if available and place.processes > available:
            raise UserError(
                f"{place}: {place.processes} processes on this node, which shows {available} GPUs; give --gpus N"
            )
        return place.processes
    return placement.gpus or max(1, available)


def become_rank(place: Place) -> None:
    """Set the environment of this process, which is a rank, as torchrun does.

    Raises:
        UserError: if its node shows too few GPUs.
    """
    assert place.rank is not None
    rank, gpus = place.rank, _gpus()
    local = 0 if gpus == 1 and rank.bound else rank.local
    if gpus and local >= gpus:
        raise UserError(f"{place}: it is number {local} on its node, which shows {gpus} GPUs; start one task a GPU")
    host, _, port = (place.master or "127.0.0.1:0").rpartition(":")
    os.environ |= {"RANK": str(rank.number), "LOCAL_RANK": str(local), "WORLD_SIZE": str(rank.all)}
    os.environ |= {"MASTER_ADDR": host, "MASTER_PORT": port}
    if rank.bound:  # a task of SLURM, which starts as many on each node; other launchers set it themselves
        os.environ["LOCAL_WORLD_SIZE"] = str(-(-rank.all // place.nodes.most))
    if gpus:
        let_segments_grow()


def let_segments_grow() -> None:
    """Let torch's CUDA allocator use segments that grow, unless the user has configured it: blocks whose sizes change from step
    to step leave gaps in segments of fixed size."""
    if not any(name in os.environ for name in ALLOCATOR):
        # The second name alone is not enough for torch 2.9, and for the first alone torch 2.9 warns.
        os.environ.update(dict.fromkeys(ALLOCATOR, "expandable_segments:True"))


def _gpus() -> int:
    """Number of GPUs that this process may use, counted without importing torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        # CUDA stops at the first invalid entry: "-1" and "" hide all GPUs.
        return len(list(itertools.takewhile(DEVICE.match, (name.strip() for name in visible.split(",")))))
    if not shutil.which("nvidia-smi"):
        return 0
    listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return sum(line.startswith("GPU ") for line in listing.stdout.splitlines())
