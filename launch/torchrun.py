"""Starts the ranks of this node with torch's launcher, as torchrun does, and waits for them. A job has one or several nodes.

:func:`ranks_of_node` decides how many ranks start, and :func:`run_ranks` runs the job. If another launcher has started a process
for each rank, :func:`become_rank` is used instead.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from launch.clusters import LaunchContext, rendezvous_settings
from launch.placement import Placement
from launch.signals import first_signal_forwarded, killed_rank
from utils import rank_reports
from utils.cores import usable_cores
from utils.errors import UserError, reason_of
from utils.processes import (
    GRACE_S,
    PEER_LOST,
    STOP_SIGNALS,
    USER_ERROR,
    signal_name,
    status_of_stop,
)

if TYPE_CHECKING:
    from torch.distributed.launcher.api import LaunchConfig

IMPORT_FOLDER = Path(__file__).parents[__name__.count(".")]
"""The folder from which our modules are imported: the folder of this checkout or, if the project is installed (as
x2vlm.launch.torchrun), the folder that contains x2vlm."""

ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
"""Environment variables with the settings of torch's CUDA allocator, of which one is enough."""

HANDLED_BY_TORCH = "SIGQUIT"
"""The signal for which torch installs its own handler; :mod:`launch.signals` handles the others."""

MAX_RESTARTS = 10
"""Default number of failures on a node after which an elastic job ends. Restarts because a node has joined do not count."""

RENDEZVOUS = "x2vlm"
"""ID of a job at its rendezvous."""

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def ranks_of_node(placement: Placement, context: LaunchContext) -> int:
    """Returns the number of ranks on this node, which is set by the flags or by the scheduler; by default, there is one rank per
    GPU. Without GPUs, ranks run on the CPU.

    Raises:
        UserError: if there are too few GPUs.
    """
    if placement.cpu:
        return placement.cpu
    available = _gpus()
    if placement.gpus is not None and placement.gpus > available:
        raise UserError(
            f"this machine has {available} GPUs",
            where=f"--gpus {placement.gpus}",
            remedy="use --cpu N to run on the CPU",
        )
    if placement.gpus is None and context.processes is not None:
        if available and context.processes > available:
            raise UserError(
                f"{context.processes} processes on this node, but only {available} GPUs are visible",
                where=context,
                remedy="pass --gpus N",
            )
        return context.processes
    return placement.gpus or max(1, available)


def run_ranks(
    context: LaunchContext, ranks: int, command: Sequence[str], *, grace_s: int = GRACE_S, on_cpu: bool = False
) -> int:
    """Runs a command on every rank, and returns the job's exit status:

    - 0 if all ranks have finished, and the status of the first rank that failed otherwise: 2 for a user error, 69
      (:data:`~utils.processes.PEER_LOST`) if it lost another rank, and 128 + n if signal n killed it.
    - After a stop signal to this process, which is forwarded to the ranks: 75, for which schedulers requeue the job, or 130 after
      Ctrl-C. The ranks have ``grace_s`` seconds to save a checkpoint; the status is 2 if they could not. A second signal kills
      all ranks immediately.

    Args:
        context: the nodes of the job, including this node.
        ranks: number of ranks on this node.
        command: Python's arguments: a script or ``-m`` and a module, and the arguments of the script or module.
        grace_s: time limit in seconds for ranks to exit after a signal.
        on_cpu: whether the ranks ignore the GPUs of this node.

    Raises:
        UserError: if the nodes do not find each other.
    """
    # Imported here so that --help and errors do not wait for torch.
    from torch.distributed import DistNetworkError, DistStoreError
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError
    from torch.distributed.launcher.api import elastic_launch

    from launch.elastic import run_elastic

    _silence_torch()
    with (
        TemporaryDirectory(prefix="x2vlm-ranks-", ignore_cleanup_errors=True) as reports,
        _environment_of_ranks(ranks, reports, on_cpu=on_cpu),
        first_signal_forwarded(SignalException, grace_s),
    ):
        try:
            config, python_arguments = _launch_config(context, ranks, grace_s, reports), ["-u", *command]
            if context.nodes.elastic:
                run_elastic(config, sys.executable, python_arguments)
            else:
                elastic_launch(config, sys.executable)(*python_arguments)
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
            return _status_of(rank, failure.exitcode)
        except SignalException as stopped:
            if rank_reports.some_rank_reported(USER_ERROR):  # the rank has printed its error
                return USER_ERROR
            signum = int(stopped.sigval)
            return status_of_stop(signum) if signum in STOP_SIGNALS else 128 + signum
        except (RendezvousError, DistNetworkError, DistStoreError) as error:
            # Without other nodes, or once the ranks have started, none of these is the user's mistake.
            if context.master is None:
                raise
            raise UserError(
                f"the nodes did not find each other (--master {context.master}): {reason_of(error)}"
            ) from None
    return 0


@contextlib.contextmanager
def _environment_of_ranks(ranks: int, reports: str, *, on_cpu: bool) -> Iterator[None]:
    """Context with the environment variables that the ranks of this node inherit. The user's settings of threads and of the
    allocator are kept.

    Args:
        ranks: number of ranks on this node.
        reports: the folder for :mod:`utils.rank_reports`.
        on_cpu: whether the ranks ignore the GPUs of this node.
    """
    previous = dict(os.environ)
    # Ranks must import this checkout from any working directory, and packages in the working directory must not shadow it.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(IMPORT_FOLDER), os.environ.get("PYTHONPATH")]))
    os.environ["PYTHONSAFEPATH"] = "1"
    os.environ[rank_reports.FOLDER] = reports
    # An equal share of this machine's cores for each rank.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, usable_cores() // ranks)))
    # Make waiting threads yield their cores early, because the loader's workers and other programs need the cores.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    if on_cpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    elif _gpus():
        use_expandable_segments()
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(previous)


def _silence_torch() -> None:
    """Silences the loggers of torch's launcher, so that its report does not bury the error that the job prints. Each logger has a
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


def _launch_config(context: LaunchContext, ranks: int, grace_s: int, log_folder: str) -> LaunchConfig:
    """Describes the job to torch."""
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.launcher.api import LaunchConfig

    nodes, endpoint = context.nodes, context.master or "127.0.0.1:0"
    run_id, restarts, settings = RENDEZVOUS, 0, {}
    if nodes.elastic:
        restarts = MAX_RESTARTS if context.max_restarts is None else context.max_restarts
        run_id, settings = os.environ.get("PET_RDZV_ID", RENDEZVOUS), rendezvous_settings(os.environ)
    fixed = context.master is not None and not nodes.elastic
    return LaunchConfig(
        min_nodes=nodes.min,
        max_nodes=nodes.max,
        nproc_per_node=ranks,
        logs_specs=DefaultLogsSpecs(log_dir=log_folder),  # by default, torch leaves a folder behind
        run_id=run_id,
        rdzv_backend="static" if fixed else "c10d",
        rdzv_endpoint=endpoint,
        rdzv_configs={"rank": context.node_rank} if fixed else settings,
        max_restarts=restarts,
        # Otherwise torch uses this node's full name, which other processes on the same machine may not resolve.
        local_addr="127.0.0.1" if endpoint.rpartition(":")[0] in LOOPBACK else None,
        signals_to_handle=HANDLED_BY_TORCH,
        shutdown_timeout=grace_s,
    )


def _status_of(rank: int, exit_code: int) -> int:
    """Returns the exit status of a job whose first failed rank has this exit code. If a signal killed the rank, it has not
    printed an error, so this function prints one."""
    if exit_code >= 0:
        return exit_code
    lost_peer = signal_name(-exit_code) == "SIGABRT" and rank_reports.recorded_by_nccl(rank)
    reason = "NCCL gave up waiting for another rank" if lost_peer else None
    sys.stderr.write(
        f"error: {killed_rank(rank, -exit_code, reason)}; rerun with --resume to continue from the newest checkpoint\n"
    )
    return PEER_LOST if lost_peer else 128 - exit_code


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
            f"its local rank is {local}, but only {gpus} GPUs are visible",
            where=context,
            remedy="start one task per GPU",
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
        os.environ[ALLOCATOR[0]] = "expandable_segments:True"


def _gpus() -> int:
    """Returns the number of GPUs that this process may use. Torch counts them without using one."""
    from torch.cuda import device_count

    return device_count()
