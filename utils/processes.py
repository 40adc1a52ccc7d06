"""Signals that ask a run to stop, exit statuses, and functions for child processes that must not outlive their parent.

A rank ends with one of these statuses, and the launcher returns the status of the first rank that failed:

=========  =======================================================  =========================================
0          the run is done                                          :func:`tasks.job.run_task`
2          the user has to change something                         :func:`utils.errors.report`
69         another rank is lost                                     :func:`utils.errors.report`
75, 130    the run was asked to stop, and can be resumed            :class:`engine.stopping.StopRequest`
128 + n    signal n killed the rank, or it was the second signal    :func:`launch.torchrun.run_ranks`
=========  =======================================================  =========================================

After a signal to the launcher, it returns 75 or 130, or 2 if a rank has reported that it could not save.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP, signal.SIGXCPU)
"""Signals that ask a run to save a checkpoint and exit: a scheduler's notice, a scheduler's early notice, Ctrl-C, a closed
terminal (such as a lost ssh connection), and the CPU time limit."""

REQUEUE = 75
"""Exit status of a run that was asked to stop and can be resumed (EX_TEMPFAIL, for which schedulers requeue a job)."""

PEER_LOST = 69
"""Exit status of a rank that lost another rank (EX_UNAVAILABLE). It must be lower than :data:`REQUEUE`, since srun returns the
highest status."""

USER_ERROR = 2
"""Exit status after a user error, which a restart would not fix."""

WAIT_S = 240
"""Seconds after which the lock of a process on a lost node has expired. This is longer than a lease lasts, and longer than an NFS
server takes to release a lock (90 s)."""

TIMEOUT_MIN = 120.0
"""Default number of minutes that a rank waits for the others."""

GRACE_S = 120
"""Default number of seconds within which a run must exit after a signal."""

INTERRUPTED = 130
"""Exit status after Ctrl-C."""

DUPLICATE_SIGNAL_S = 1.0
"""Signals within this many seconds count as one signal: a scheduler signals each process of a job, the launcher also forwards the
signal that it has received, and `timeout` sends each signal twice."""

_PR_SET_PDEATHSIG = 1


@contextmanager
def signals_in_a_thread(receive: Callable[[int], None]) -> Iterator[None]:
    """Context in which a thread calls ``receive`` with every signal that has a handler, as soon as it arrives. Python calls the
    handlers themselves only when the main thread runs Python code, so never while it waits inside torch.

    Processes that are forked inside the context report their signals through the same pipe, so the context must not outlast the
    job.
    """
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    previous = signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)

    def read() -> None:
        while signums := os.read(read_end, 64):
            for signum in signums:
                receive(signum)
        os.close(read_end)

    threading.Thread(target=read, name="signals", daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(previous)
        os.close(write_end)  # ends the thread


class FirstSignal:
    """Recognises the first of several signals to this process. A second one ends the process at once."""

    def __init__(self) -> None:
        self.received_s: float | None = None
        """Time of the first signal (``time.monotonic``)."""

    def is_first(self, signum: int) -> bool:
        """Returns True for the first signal and False for its duplicates (:data:`DUPLICATE_SIGNAL_S`)."""
        now = time.monotonic()
        if self.received_s is None:
            self.received_s = now
            return True
        if now - self.received_s > DUPLICATE_SIGNAL_S:
            os._exit(128 + signum)
        return False


def status_of_stop(signum: int) -> int:
    """Returns the exit status of a run that was ended by one of :data:`STOP_SIGNALS`."""
    return INTERRUPTED if signum == signal.SIGINT else REQUEUE


def signal_name(signum: int) -> str:
    """Returns the name of a signal, such as SIGTERM for 15."""
    try:
        return signal.Signals(signum).name
    except ValueError:
        return f"signal {signum}"


def die_with_parent() -> None:
    """Asks the kernel to kill this process when its parent exits for any reason. Does nothing on systems other than Linux."""
    if not sys.platform.startswith("linux"):
        return
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # the parent exited in the meantime
        os._exit(128 + signal.SIGKILL)


def stop_signals() -> list[signal.Signals]:
    """Returns the signals that this process handles. These are all of :data:`STOP_SIGNALS`, except SIGHUP under ``nohup``, which
    starts programs with SIGHUP ignored."""
    return [
        signum
        for signum in STOP_SIGNALS
        if signum != signal.SIGHUP or signal.getsignal(signal.SIGHUP) != signal.SIG_IGN
    ]


def ignore_stop_signals() -> None:
    """Makes a child process ignore stop signals, since schedulers signal every process of a job, but only the parent should
    react."""
    for signum in STOP_SIGNALS:
        signal.signal(signum, signal.SIG_IGN)
