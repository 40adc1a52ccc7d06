"""Stops a run on request, at a point from which it can be resumed.

A signal sets a flag. What follows depends on what the run is doing:

- **Training steps** (:meth:`StopRequest.ending_if_late`). The flag is part of the all-reduce of the losses, so all ranks stop
  after the same step, without extra synchronisation. If they cannot, because a rank hangs, a timer ends each process shortly
  before the launcher would kill it, and says what was saved.
- **Set-up, validation and evaluation** (:meth:`StopRequest.ending_at_once`). They do not change the weights, so a thread ends the
  process immediately, or once the checkpoint that was started before a validation is on disk. Rank 0 ends first. The other ranks
  continue until rank 0 has ended, because rank 0 may already have finished the evaluation and need them. Then a thread in each of
  them ends its process, whatever the process is waiting for.
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
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import Any, NoReturn

from utils import distributed, events
from utils.errors import PeerLostError, report
from utils.processes import (
    GRACE_S,
    USER_ERROR,
    FirstSignal,
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


@dataclass(frozen=True)
class Ending:
    """How a process ends while its main thread is busy.

    Attributes:
        message: returns a message for the log, which says what is saved. May wait until it is on disk.
        at_once: True if the process ends immediately after a request; False if it ends only when the ranks do not stop in time.
    """

    message: Callable[[], str]
    at_once: bool


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
        self._store_lost = False
        """True if the process that hosts the store has ended."""
        self._status_of_rank_0: int | None = None
        """Exit status that rank 0 published before it ended, while this rank is still running."""
        self._lock = threading.Lock()
        self._ending: Ending | None = None
        """None while the process must not be ended."""
        self._closed = threading.Event()
        self._handlers: dict[int, Any] = {}
        self._signals = contextlib.ExitStack()
        self._first_signal = FirstSignal()

    def __enter__(self) -> StopRequest:
        self._handlers = {signum: signal.signal(signum, self._handle) for signum in stop_signals()}
        self._signals.enter_context(signals_in_a_thread(self._receive))
        threading.Thread(target=self._watch, daemon=True, name="stop requests").start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed.set()
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

    def ending_at_once(
        self, message: Callable[[], str] = lambda: "no new step has been trained"
    ) -> AbstractContextManager[None]:
        """Context in which a request ends the process immediately, after rank 0 has called ``message``, which may wait for a
        checkpoint, and has logged the result."""
        return self._ending_with(Ending(message, at_once=True))

    def ending_if_late(self, message: Callable[[], str]) -> AbstractContextManager[None]:
        """Context in which the ranks stop together. If they do not stop in time, a request ends the process without saving, and
        rank 0 or, if rank 0 hangs, each of the other ranks logs the result of ``message``."""
        return self._ending_with(Ending(message, at_once=False))

    @contextmanager
    def _ending_with(self, ending: Ending) -> Iterator[None]:
        with self._lock:
            outer, self._ending = self._ending, ending
        try:
            yield
        finally:
            with self._lock:  # waits forever if the process is being ended
                self._ending = outer

    def _handle(self, signum: int, _: FrameType | None) -> None:
        """Called by Python in the main thread, but not before it runs Python code; :meth:`_receive` is called before that."""
        self.signum = self.signum or signum

    def _receive(self, signum: int) -> None:
        """Called in a separate thread when a signal arrives, even if the main thread waits for a rank that hangs."""
        if signum in self._handlers and self._first_signal.is_first(signum):
            self.signum = self.signum or signum
            self._start_timer()

    def _watch(self) -> None:
        while not self._closed.wait(POLL_S):
            self._exchange()  # waits for ever if the rank that hosts the store hangs
            if self.signum is not None:
                self._start_timer()
            with self._lock:
                if self._ending is not None and not self._closed.is_set() and self._must_end(self._ending):
                    self._end(self._ending)

    def _must_end(self, ending: Ending) -> bool:
        """True if the process must end now. Rank 0 ends first, and the others once it has ended."""
        if not ending.at_once:  # rank 0 ends if it is late (_end_late)
            return self.signum is not None and self._status_of_rank_0 is not None
        if distributed.rank() == 0:
            return self.signum is not None
        return self._status_of_rank_0 is not None or self._store_lost

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
        if not self._lock.acquire(timeout=POLL_S):  # _watch is ending this process, and waits for its checkpoint
            message = "the checkpoint was not written within train.grace_s: increase it; older checkpoints are kept"
            logger.warning(events.Stopped(by=self.name, message=message))
            self._exit(self.status)
        try:
            if self._ending is not None and not self._closed.is_set():
                self._end(self._ending)
        finally:
            self._lock.release()

    def _exchange(self) -> None:
        """Exchanges signals with the other ranks, and reads the exit status of rank 0 if it has ended."""
        if self.store is None:
            return
        try:
            # Rank 0 publishes "signal" before "ended", so read them in the opposite order. Otherwise, rank 0 could publish both
            # between the two reads, and would seem to have ended without a signal.
            if distributed.rank() != 0 and self.store.check(["ended"]):
                self._status_of_rank_0 = int(self.store.get("ended"))
            if self.store.check(["signal"]):
                self.signum = self.signum or int(self.store.get("signal"))
            elif self.signum is not None:
                self.store.set("signal", str(int(self.signum)))
        except RuntimeError:  # the process that hosts the store has ended
            self._store_lost, self.store = True, None

    def _end(self, ending: Ending) -> None:
        """Ends this process without Python's cleanup, since threads and workers may be in any state."""
        status = self.status if self._status_of_rank_0 is None else self._status_of_rank_0
        rank_0_hangs = not ending.at_once and self._status_of_rank_0 is None and not self._store_lost
        if distributed.rank() == 0 or rank_0_hangs:
            try:
                logger.warning(events.Stopped(by=self.name, message=ending.message()))
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
        self._exit(status)

    @staticmethod
    def _exit(status: int) -> NoReturn:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):  # the terminal may be closed
                stream.flush()
        logging.shutdown()
        report_status(status)
        os._exit(status)
