"""Processes that belong together: signals that ask a run to stop, and children that do not outlive their parent."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP, signal.SIGXCPU)
"""Ask a run to save a checkpoint and end: a scheduler's notice, a scheduler's early notice, Ctrl-C, a terminal that is closed
(such as a lost ssh connection), and the limit of CPU time."""

REQUEUE = 75
"""Exit status of a run that was asked to stop and can be resumed (EX_TEMPFAIL: schedulers requeue on it)."""

PEER_LOST = 69
"""Exit status of a rank that lost another one (EX_UNAVAILABLE). It is lower than :data:`REQUEUE`: srun returns the highest."""

MISTAKE = 2
"""Exit status after a user's mistake, which another start would make again."""

GRACE_S = 120
"""Seconds from a signal to the end of a run, unless a config says otherwise."""

INTERRUPTED = 130
"""Exit status after Ctrl-C."""

ECHO_S = 1.0
"""Seconds in which signals count as one: a scheduler signals each process of a job, and the launcher forwards its own signal too;
`timeout` sends each twice."""

_PR_SET_PDEATHSIG = 1


def status_of_stop(signum: int) -> int:
    """Exit status of a run that one of :data:`STOP_SIGNALS` ended."""
    return INTERRUPTED if signum == signal.SIGINT else REQUEUE


def signal_name(signum: int) -> str:
    """SIGTERM for 15."""
    try:
        return signal.Signals(signum).name
    except ValueError:
        return f"signal {signum}"


def die_with_parent() -> None:
    """Let the kernel end this process when its parent ends, however that was; only on Linux."""
    if not sys.platform.startswith("linux"):
        return
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended in between
        os._exit(128 + signal.SIGKILL)


def stop_signals() -> list[signal.Signals]:
    """The signals of :data:`STOP_SIGNALS` that this process handles: all of them, except SIGHUP under ``nohup``, which starts
    programs with that signal ignored."""
    return [
        signum
        for signum in STOP_SIGNALS
        if signum != signal.SIGHUP or signal.getsignal(signal.SIGHUP) != signal.SIG_IGN
    ]


def ignore_stop_signals() -> None:
    """Leave it to the parent to stop: schedulers signal every process of a job."""
    for signum in STOP_SIGNALS:
        signal.signal(signum, signal.SIG_IGN)
