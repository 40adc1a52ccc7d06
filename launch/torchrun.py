"""Starts a job through torchrun on this machine's GPUs or cores. The machine is the only node of the job, or one of several."""

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

from launch.clusters import LaunchContext
from launch.placement import Placement
from utils.cores import usable_cores
from utils.errors import UserError, reason_of
from utils.processes import (
    DUPLICATE_SIGNAL_S,
    GRACE_S,
    STOP_SIGNALS,
    USER_ERROR,
    signal_name,
    status_of_stop,
    stop_signals,
)

ALLOCATOR = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
"""Environment variables with the settings of torch's CUDA allocator."""

HANDLED_BY_TORCHRUN = "SIGQUIT"
"""The signal that torchrun forwards. We forward the other signals, :data:`~utils.processes.STOP_SIGNALS`."""

MAX_RESTARTS = 10
"""Default number of failures on a node after which an elastic job ends. Restarts because a node has joined do not count."""

RENDEZVOUS = "x2vlm"
"""ID of a job at its rendezvous."""

LOOPBACK = ("127.0.0.1", "localhost", "::1")

UNHANDLED_S = 3.0
"""Number of seconds that Python has to handle a signal; see :func:`_exit_if_signal_unhandled`."""

DEVICE = re.compile(r"\d|GPU-|MIG-")
"""Matches the start of a valid entry in CUDA_VISIBLE_DEVICES."""


def torchrun(context: LaunchContext, processes: int, command: Sequence[str], grace_s: int = GRACE_S) -> int:
    """Runs a command on every rank. Returns the job's exit status (128 + n if signal n ended the job).

    A signal is forwarded to the ranks, which have ``grace_s`` seconds to exit. The exit status is then 75, for which schedulers
    requeue the job, or 130 after Ctrl-C. The exit status is 2 if a rank could not stop cleanly, for example because the
    checkpoint could not be written. A second signal kills all ranks immediately.

    Args:
        context: the nodes of the job, including this node.
        processes: number of ranks on this node.
        command: a script and its arguments, or ``--module``, a module and its arguments.
        grace_s: time limit in seconds for ranks to exit after a signal.

    Raises:
        UserError: if the nodes do not find each other.
    """
    # Imported here so that --help and errors do not wait for torch.
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError
    from torch.distributed.run import get_args_parser, run

    from launch.elastic import run_elastic

    flags = _torchrun_flags(context, processes)
    parser = get_args_parser()
    if "--signals-to-handle" in parser._option_string_actions:
        flags += [f"--signals-to-handle={HANDLED_BY_TORCHRUN}"]
    _silence_torchrun()
    torchrun_arguments = parser.parse_args([*flags, *command])
    with environment_of_ranks(), _first_signal_forwarded(SignalException, grace_s), _statuses_of_ranks() as statuses:
        _share_cores(processes)
        os.environ["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] = str(grace_s)
        try:
            if context.nodes.elastic:
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
            if USER_ERROR in statuses:  # the rank has printed its error
                return USER_ERROR
            return status_of_stop(signum) if signum in STOP_SIGNALS else 128 + signum
        except (RendezvousError, ConnectionError, TimeoutError, RuntimeError) as error:
            raise UserError(
                f"the nodes did not find each other (--master {context.master}): {reason_of(error)}"
            ) from None
    return 0


@contextlib.contextmanager
def environment_of_ranks() -> Iterator[None]:
    """Context in which the environment may be changed for the ranks, which inherit it. The changes are undone at the end."""
    previous = dict(os.environ)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(previous)


@contextlib.contextmanager
def _statuses_of_ranks() -> Iterator[list[int]]:
    """Collects the exit statuses of this node's ranks when torchrun ends them after a signal, since torchrun reports only the
    signal."""
    from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent

    statuses: list[int] = []
    shut_down = LocalElasticAgent._shutdown

    def shut_down_and_collect(agent: LocalElasticAgent, *arguments: Any, **options: Any) -> None:
        shut_down(agent, *arguments, **options)
        handlers = getattr(agent._pcontext, "subprocess_handlers", {})
        statuses[:] = [handler.proc.returncode for handler in handlers.values()]

    LocalElasticAgent._shutdown = shut_down_and_collect  # type: ignore[method-assign,assignment]
    try:
        yield statuses
    finally:
        LocalElasticAgent._shutdown = shut_down  # type: ignore[method-assign]


def _share_cores(processes: int) -> None:
    """Gives each rank an equal share of this machine's cores, unless the user has set the number of threads."""
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, usable_cores() // processes)))
    # Make waiting threads yield their cores early, because the loader's workers and other programs need the cores.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")


def _torchrun_flags(context: LaunchContext, processes: int) -> list[str]:
    """Returns torchrun's flags for the nodes and ranks of the job. All flags are set explicitly, because torchrun would read
    missing flags from ``PET_*`` variables."""
    flags = [f"--nproc-per-node={processes}", f"--nnodes={context.nodes}"]
    if context.master is None:
        return [*flags, "--max-restarts=0", "--standalone"]
    host, _, port = context.master.rpartition(":")
    if context.nodes.elastic:
        restarts = MAX_RESTARTS if context.max_restarts is None else context.max_restarts
        flags += ["--rdzv-backend=c10d", f"--rdzv-endpoint={context.master}", f"--max-restarts={restarts}"]
        flags += [] if "PET_RDZV_ID" in os.environ else [f"--rdzv-id={RENDEZVOUS}"]
        # Otherwise torchrun uses this node's full name, which other processes on the same machine may not resolve.
        return [*flags, "--local-addr=127.0.0.1"] if host in LOOPBACK else flags
    flags += ["--rdzv-backend=static", "--rdzv-endpoint=", "--max-restarts=0", f"--node-rank={context.node_rank}"]
    return [*flags, f"--master-addr={host}", f"--master-port={port}"]


def _silence_torchrun() -> None:
    """Silences torchrun's loggers, so that torchrun's report does not bury the error that the job prints. Each logger has a
    separate level, so all of them must be silenced.

    This function also hides a message that Python prints if the rendezvous is garbage-collected in the thread of its timer. In
    this case, the finaliser stops the timer and then tries to join the current thread.
    """
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("torch.distributed.elastic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    print_error = sys.unraisablehook

    def ignore_timer_errors(ignored: Any) -> None:
        if str(ignored.exc_value) != "cannot join current thread":
            print_error(ignored)

    sys.unraisablehook = ignore_timer_errors


@contextlib.contextmanager
def _first_signal_forwarded(exception: Callable[[str, signal.Signals], Exception], grace_s: int) -> Iterator[None]:
    """Context in which the first stop signal raises torchrun's ``exception``, which makes torchrun forward the signal. The second
    signal ends this process immediately, and the ranks die with it (:func:`utils.processes.die_with_parent`)."""
    received_s: list[float] = []

    def receive(signum: int, _: object) -> None:
        now = time.monotonic()
        if received_s:
            if now - received_s[0] > DUPLICATE_SIGNAL_S:
                os._exit(128 + signum)
            return
        received_s.append(now)
        line = (
            f"{signal_name(signum)}: the run stops after this step, within {grace_s} s; a second signal ends it at "
            "once\n"
        )
        with contextlib.suppress(OSError):
            os.write(2, line.encode())  # sys.stderr may be in the middle of a line
        raise exception(f"got {signal_name(signum)}", signal.Signals(signum))

    handlers = {signum: signal.signal(signum, receive) for signum in stop_signals()}
    try:
        with _exit_if_signal_unhandled(received_s):
            yield
    finally:
        for signum, handler in handlers.items():
            signal.signal(signum, handler)


@contextlib.contextmanager
def _exit_if_signal_unhandled(received_s: Sequence[float]) -> Iterator[None]:
    """Context in which this process ends if Python has not handled a stop signal after :data:`UNHANDLED_S` seconds, so that
    ``received_s`` is still empty. In this case, the process is waiting for other nodes inside torch, where Python cannot handle
    signals, and no rank has started yet.

    Processes that are forked inside the context report their signals through the same pipe, so the context must not outlast the
    job.
    """
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    previous = signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)

    def watch() -> None:
        while signums := os.read(read_end, 1):
            signum = signal.Signals(signums[0])
            if signum in STOP_SIGNALS:
                time.sleep(UNHANDLED_S)
                if not received_s:
                    os.write(2, f"{signal_name(signum)}: ended while waiting for the other nodes\n".encode())
                    os._exit(status_of_stop(signum))
        os.close(read_end)

    threading.Thread(target=watch, name="signals", daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(previous)
        os.close(write_end)  # ends the thread


def _ended_by(rank: int, name: str) -> str:
    """Returns the error message for a rank that was killed by a signal."""
    reasons = {
        "SIGKILL": "the system kills processes when memory is full: lower the batch size or data.workers",
        "SIGABRT": "a library aborted, such as NCCL after a timeout: see the last lines of the rank's log",
        "SIGSEGV": "a library crashed: its version may be incompatible with the others",
        "SIGBUS": "shared memory or the disk is full: check /dev/shm, or lower data.workers",
    }
    reason = f" ({reasons[name]})" if name in reasons else ""
    return f"rank {rank} was killed by {name}{reason}; rerun with --resume to continue from the newest checkpoint"


def processes_of(placement: Placement, context: LaunchContext) -> int:
    """Returns the number of ranks on this node, which is set by the flags or by the scheduler; by default, there is one rank per
    GPU. Without GPUs, ranks run on the CPU.

    Raises:
        UserError: if there are too few GPUs.
    """
    if placement.cpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        return placement.cpu
    available = _gpus()
    if placement.gpus is not None and placement.gpus > available:
        raise UserError(f"--gpus {placement.gpus}: this machine has {available} GPUs; use --cpu N to run on the CPU")
    if available:
        use_expandable_segments()
    if placement.gpus is None and context.processes is not None:
        if available and context.processes > available:
            raise UserError(
                f"{context}: {context.processes} processes on this node, but only {available} GPUs are visible; pass --gpus N"
            )
        return context.processes
    return placement.gpus or max(1, available)


def become_rank(context: LaunchContext) -> None:
    """Sets the environment variables of a rank in this process, as torchrun does.

    Raises:
        UserError: if too few GPUs are visible to this process.
    """
    assert context.rank is not None
    rank, gpus = context.rank, _gpus()
    local = 0 if gpus == 1 and rank.bound else rank.local_rank
    if gpus and local >= gpus:
        raise UserError(
            f"{context}: its local rank is {local}, but only {gpus} GPUs are visible; start one task per GPU"
        )
    host, _, port = (context.master or "127.0.0.1:0").rpartition(":")
    os.environ |= {"RANK": str(rank.global_rank), "LOCAL_RANK": str(local), "WORLD_SIZE": str(rank.world_size)}
    os.environ |= {"MASTER_ADDR": host, "MASTER_PORT": port}
    if rank.bound:  # SLURM starts the same number of tasks on each node; other launchers set this variable
        os.environ["LOCAL_WORLD_SIZE"] = str(-(-rank.world_size // context.nodes.max))
    if gpus:
        use_expandable_segments()


def use_expandable_segments() -> None:
    """Enables expandable segments in torch's CUDA allocator, unless the user has configured it. With fixed segments, allocations
    whose sizes vary from step to step cause fragmentation."""
    if not any(name in os.environ for name in ALLOCATOR):
        # In torch 2.9, the second name alone is not enough, and the first name alone causes a warning.
        os.environ.update(dict.fromkeys(ALLOCATOR, "expandable_segments:True"))


def _gpus() -> int:
    """Returns the number of GPUs that this process may use, without importing torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        # CUDA stops at the first invalid entry: "-1" and "" hide all GPUs.
        return len(list(itertools.takewhile(DEVICE.match, (name.strip() for name in visible.split(",")))))
    if not shutil.which("nvidia-smi"):
        return 0
    listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return sum(line.startswith("GPU ") for line in listing.stdout.splitlines())
