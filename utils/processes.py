"""Signals that ask a run to stop, exit statuses, and child processes that do not outlive their parent."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP, signal.SIGXCPU)
"""Signals that ask a run to save a checkpoint and exit: a scheduler's notice, a scheduler's early notice, Ctrl-C, a closed
terminal (such as a lost ssh connection), and the CPU time limit."""

REQUEUE = 75
"""Exit status of a run that was asked to stop and can be resumed (EX_TEMPFAIL, on which schedulers requeue)."""

PEER_LOST = 69
"""Exit status of a rank that lost another rank (EX_UNAVAILABLE). Lower than :data:`REQUEUE`, since srun returns the highest
status."""

MISTAKE = 2
"""Exit status after a user error, which a restart would not fix."""

WAIT_S = 240
"""Time after which the lock of a process on a lost node has expired: longer than a lease lasts, and longer than NFS servers take
(90 s)."""

GRACE_S = 120
"""Default number of seconds within which a run must exit after a signal."""

INTERRUPTED = 130
"""Exit status after Ctrl-C."""

ECHO_S = 1.0
"""Signals within this many seconds count as one: a scheduler signals each process of a job, the launcher also forwards its own
signal, and `timeout` sends each signal twice."""

_PR_SET_PDEATHSIG = 1


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
    """Ask the kernel to kill this process when its parent exits for any reason. Only supported on Linux."""
    if not sys.platform.startswith("linux"):
        return
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # the parent exited in the meantime
        os._exit(128 + signal.SIGKILL)


def stop_signals() -> list[signal.Signals]:
    """Returns the signals that this process handles: all of :data:`STOP_SIGNALS`, except SIGHUP under ``nohup``, which starts
    programs with SIGHUP ignored."""
    return [
        signum
        for signum in STOP_SIGNALS
        if signum != signal.SIGHUP or signal.getsignal(signal.SIGHUP) != signal.SIG_IGN
    ]


def ignore_stop_signals() -> None:
    """Ignore stop signals in a child process: schedulers signal every process of a job, but only the parent should react."""
    for signum in STOP_SIGNALS:
        signal.signal(signum, signal.SIG_IGN)
