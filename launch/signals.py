"""Signals to the process that starts the ranks of a node, and to the ranks."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator

from utils.processes import (
    STOP_SIGNALS,
    FirstSignal,
    signal_name,
    signals_in_a_thread,
    status_of_stop,
    stop_signals,
)

UNHANDLED_S = 3.0
"""Number of seconds after which a signal counts as one that Python cannot handle, because the process waits inside torch."""

KILLED_BY = {
    "SIGKILL": "the system kills processes when memory is full: lower the batch size or data.workers",
    "SIGABRT": "a library aborted: see the last lines of the rank's log",
    "SIGSEGV": "a library crashed: its version may be incompatible with the others",
    "SIGBUS": "shared memory or the disk is full: check /dev/shm, or lower data.workers",
}
"""Likely reasons why a signal has killed a rank."""


def killed_rank(rank: int, signum: int, reason: str | None = None) -> str:
    """Returns a message about a rank that a signal has killed, with the likely reason."""
    name = signal_name(signum)
    reason = reason or KILLED_BY.get(name)
    return f"rank {rank} was killed by {name}{f' ({reason})' if reason else ''}"


@contextlib.contextmanager
def first_signal_forwarded(exception: Callable[[str, signal.Signals], Exception], grace_s: int) -> Iterator[None]:
    """Context in which the first stop signal raises torchrun's ``exception``, which makes torchrun forward the signal. The second
    signal ends this process immediately, and the ranks die with it (:func:`utils.processes.die_with_parent`)."""
    signals = FirstSignal()

    def receive(signum: int, _: object) -> None:
        if not signals.is_first(signum):
            return
        line = f"{signal_name(signum)}: the run stops within {grace_s} s; a second signal ends it at once\n"
        with contextlib.suppress(OSError):
            os.write(2, line.encode())  # sys.stderr may be in the middle of a line
        raise exception(f"got {signal_name(signum)}", signal.Signals(signum))

    def end_if_unhandled(signum: int) -> None:
        """Ends this process if Python does not handle a signal, because this process is waiting for other nodes inside torch. No
        rank has started yet."""
        if signum not in STOP_SIGNALS:
            return
        time.sleep(UNHANDLED_S)
        if signals.received_s is None:
            os.write(2, f"{signal_name(signum)}: ended while waiting for the other nodes\n".encode())
            os._exit(status_of_stop(signum))

    handlers = {signum: signal.signal(signum, receive) for signum in stop_signals()}
    try:
        with signals_in_a_thread(end_if_unhandled):
            yield
    finally:
        for signum, handler in handlers.items():
            signal.signal(signum, handler)
