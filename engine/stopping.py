"""Stops a run on request, at a point from which it can be resumed.

A signal sets a flag. During training steps, the flag is part of the all-reduce of the losses, so all ranks stop after the same
step, without extra synchronisation. If they cannot, because a rank hangs, a thread ends each process and says what was saved,
shortly before the launcher would kill it.

Set-up, validation and evaluation do not change the weights, so during these, a thread saves a checkpoint of the steps so far, if
needed, and ends the process immediately. Rank 0 ends first. The other ranks continue until rank 0 has ended, because rank 0 may
already have finished the evaluation and need them. Then a thread in each of the other ranks ends its process, whatever the
process is waiting for.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

from utils import distributed, events
from utils.errors import PeerLostError, report
from utils.processes import (
    DUPLICATE_SIGNAL_S,
    GRACE_S,
    USER_ERROR,
    signal_name,
    signals_in_a_thread,
    status_of_stop,
    stop_signals,
)
from utils.rank_reports import report_status

logger = logging.getLogger(__name__)

POLL_S = 0.25

MARGIN_S = 5.0
"""Seconds before the end of ``train.grace_s`` at which rank 0 ends on its own. At the end, the launcher kills the ranks."""


class Stopped(Exception):  # noqa: N818 (it is not an error)
    """Raised on all ranks when a run stops on request.

    Args:
        message: what was saved.
        status: exit status of the process.
    """

    def __init__(self, message: str, status: int):
        super().__init__(message)
        self.status = status


class StopRequest:
    """Context manager for the main thread that receives requests to stop. A second signal ends the process immediately.

    Args:
        grace_s: seconds after a signal until the launcher kills the ranks. Shortly before, they end on their own.
    """

    def __init__(self, grace_s: float = GRACE_S):
        self.grace_s = grace_s
        self.signum: int | None = None
        self._timer: threading.Timer | None = None
        """Ends this process if it is late; started by the first signal to this process or to another rank."""
        self.store = distributed.shared_store("stop")
        self._rank_0_ended = False
        """True if rank 0 has ended while this rank is still running."""
        self._status_of_rank_0: int | None = None
        """Exit status that rank 0 published before it ended."""
        self._lock = threading.Lock()
        self._save: Callable[[], str] | None = None
        """Saves the state of the run and returns what was saved. None if the process must not be ended."""
        self._only_if_late = False
        self._ended = threading.Event()
        self._handlers: dict[int, Any] = {}
        self._signals = contextlib.ExitStack()
        self._first_signal_s: float | None = None

    def __enter__(self) -> StopRequest:
        self._handlers = {signum: signal.signal(signum, self._handle) for signum in stop_signals()}
        self._signals.enter_context(signals_in_a_thread(self._receive))
        threading.Thread(target=self._watch, daemon=True, name="stop requests").start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._timer is not None:
            self._timer.cancel()
        self._signals.close()
        for signum, handler in self._handlers.items():
            signal.signal(signum, handler)

    @property
    def name(self) -> str:
        """Name of the signal or its origin, for messages."""
        return "another rank" if self.signum is None else signal_name(self.signum)

    @property
    def status(self) -> int:
        """Exit status of a process that stops on request."""
        return status_of_stop(self.signum or signal.SIGTERM)

    @contextmanager
    def ending_process(
        self, save: Callable[[], str] = lambda: "no new step has been trained", *, only_if_late: bool = False
    ) -> Iterator[None]:
        """Context in which a request ends the process.

        Args:
            save: called on rank 0 before its process ends. Returns a message for the log, which says what was saved.
            only_if_late: if False, the process ends immediately. If True, it ends only if the ranks do not stop together in time.
                In this case, the other ranks call ``save`` if rank 0 hangs.
        """
        with self._lock:
            outer = self._save, self._only_if_late
            self._save, self._only_if_late = save, only_if_late
        try:
            yield
        finally:
            with self._lock:  # waits forever if the process is being ended
                self._save, self._only_if_late = outer

    def _handle(self, signum: int, _: FrameType | None) -> None:
        self.signum = self.signum or signum

    def _receive(self, signum: int) -> None:
        """Receives a signal at once, even if the main thread waits for a rank that hangs."""
        if signum not in self._handlers:
            return
        now = time.monotonic()
        if self._first_signal_s is not None and now - self._first_signal_s > DUPLICATE_SIGNAL_S:
            os._exit(128 + signum)
        self._first_signal_s = self._first_signal_s or now
        self.signum = self.signum or signum
        self._start_timer()

    def _watch(self) -> None:
        while not self._ended.wait(POLL_S):
            self._exchange()  # waits for ever if the rank that hosts the store hangs
            if self.signum is not None:
                self._start_timer()
            with self._lock:
                if self._save is not None and not self._ended.is_set() and self._may_end():
                    self._end(self._save)

    def _may_end(self) -> bool:
        """True if the process is to end now: after a signal, rank 0 ends first, and the others once it has ended. While the ranks
        train, rank 0 ends only when it is late (:meth:`_end_late`)."""
        if self._only_if_late:
            return self.signum is not None and self._status_of_rank_0 is not None
        is_first = self.store is None or distributed.rank() == 0
        return self._rank_0_ended or (is_first and self.signum is not None)

    def _start_timer(self) -> None:
        """Starts the timer that ends this process if it is late, unless it is already running."""
        if self._timer is None:
            margin_s = min(MARGIN_S, self.grace_s / 5)
            # Rank 0 is the first to end, and tells the others.
            delay_s = self.grace_s - (margin_s / 2 if distributed.rank() else margin_s)
            self._timer = threading.Timer(delay_s, self._end_late)
            self._timer.daemon = True
            self._timer.start()

    def _end_late(self) -> None:
        with self._lock:
            if self._save is not None and not self._ended.is_set():
                self._end(self._save)

    def _exchange(self) -> None:
        """Exchanges signals with the other ranks, and checks whether rank 0 has ended."""
        if self.store is None:
            return
        try:
            # Rank 0 publishes "signal" before "ended", so read them in the opposite order. Otherwise, rank 0 could publish both
            # between the two reads, and would seem to have ended without a signal.
            self._rank_0_ended = distributed.rank() != 0 and self.store.check(["ended"])
            if self._rank_0_ended:
                self._status_of_rank_0 = int(self.store.get("ended"))
            if self.store.check(["signal"]):
                self.signum = self.signum or int(self.store.get("signal"))
            elif self.signum is not None:
                self.store.set("signal", str(int(self.signum)))
        except RuntimeError:  # the process that hosts the store has ended
            self._rank_0_ended, self.store = True, None

    def _end(self, save: Callable[[], str]) -> None:
        """Ends this process without Python's cleanup, since threads and workers may be in any state."""
        status = self.status if self._status_of_rank_0 is None else self._status_of_rank_0
        if distributed.rank() == 0 or (self._only_if_late and not self._rank_0_ended):
            try:
                logger.warning(events.Stopped(by=self.name, message=save()))
            # The process ends anyway, with a status on which schedulers do not requeue the run, since it would only fail again.
            except Exception as error:
                logger.warning(events.Stopped(by=self.name, message=f"the checkpoint could not be saved: {error}"))
                status = USER_ERROR
            with contextlib.suppress(RuntimeError):  # the process that hosts the store has ended
                if self.store is not None and distributed.rank() == 0:
                    self.store.set("ended", str(status))
                    if status == USER_ERROR:
                        time.sleep(2 * POLL_S)  # the other ranks must read the store, which this process may host
        elif self.signum is None:
            status = report(PeerLostError(distributed.PEER_GONE))
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):  # the terminal may be closed
                stream.flush()
        logging.shutdown()
        report_status(status)
        os._exit(status)
