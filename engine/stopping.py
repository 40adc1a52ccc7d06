"""Stops a run on request, at a point from which it can be resumed.

A signal sets a flag. During training steps, the flag is part of the all-reduce of the losses, so all ranks stop after the same
step, without extra synchronisation. Set-up, validation and evaluation do not change the weights, so during these, a thread saves
a checkpoint of the steps so far, if needed, and ends the process immediately. Rank 0 ends first. The other ranks continue until
rank 0 has ended, because rank 0 may already have finished the evaluation and need them. Then a thread in each of the other ranks
ends its process, whatever the process is waiting for.
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
from utils.processes import DUPLICATE_SIGNAL_S, GRACE_S, USER_ERROR, signal_name, status_of_stop, stop_signals

logger = logging.getLogger(__name__)

POLL_S = 0.25


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
        grace_s: seconds after a signal until the other ranks end even if rank 0 is still running.
    """

    def __init__(self, grace_s: float = GRACE_S):
        self.grace_s = grace_s
        self.signum: int | None = None
        self._received_s: float | None = None
        """Time of the first signal to this process."""
        self._known_s: float | None = None
        """Time at which the watching thread first saw a signal to this process or to another rank."""
        self.store = distributed.shared_store("stop")
        self._rank_0_ended = False
        """True if rank 0 has ended while this rank is still running."""
        self._status_of_rank_0: int | None = None
        """Exit status that rank 0 published before it ended."""
        self._lock = threading.Lock()
        self._save: Callable[[], str] | None = None
        self._ended = threading.Event()
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        self._handlers = {signum: signal.signal(signum, self._receive) for signum in stop_signals()}
        threading.Thread(target=self._watch, daemon=True, name="stop requests").start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
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
    def ending_immediately(self, save: Callable[[], str] = lambda: "nothing has been trained yet") -> Iterator[None]:
        """Context in which a request ends the process immediately. Before its process ends, rank 0 calls ``save``, which returns
        a message for the log."""
        with self._lock:
            outer, self._save = self._save, save
        try:
            yield
        finally:
            with self._lock:  # waits forever if the process is being ended
                self._save = outer

    def _receive(self, signum: int, _: FrameType | None) -> None:
        now = time.monotonic()
        if self._received_s is None:
            self._received_s = now
        elif now - self._received_s > DUPLICATE_SIGNAL_S:
            os._exit(128 + signum)
        self.signum = self.signum or signum

    def _watch(self) -> None:
        while not self._ended.wait(POLL_S):
            self._exchange()
            if not self._may_end():
                continue
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

    def _may_end(self) -> bool:
        """True if this rank should end. Rank 0 ends after a signal. The other ranks end once rank 0 has ended, since the launcher
        then stops all ranks."""
        if self.signum is None:
            return self._rank_0_ended
        self._known_s = self._known_s or time.monotonic()
        late = time.monotonic() > self._known_s + self.grace_s
        return self._rank_0_ended or late or self.store is None or distributed.rank() == 0

    def _end(self, save: Callable[[], str]) -> None:
        """Ends this process without Python's cleanup, since threads and workers may be in any state."""
        status = self.status if self._status_of_rank_0 is None else self._status_of_rank_0
        if distributed.rank() == 0:
            try:
                logger.warning(events.Stopped(by=self.name, message=save()))
            # The process ends anyway, with a status on which schedulers do not requeue the run, since it would only fail again.
            except Exception as error:
                logger.warning(events.Stopped(by=self.name, message=f"the checkpoint could not be saved: {error}"))
                status = USER_ERROR
            with contextlib.suppress(RuntimeError):  # the process that hosts the store has ended
                if self.store is not None:
                    self.store.set("ended", str(status))
                    if status == USER_ERROR:
                        time.sleep(2 * POLL_S)  # the other ranks must read the store, which this process may host
        elif self.signum is None:
            status = report(PeerLostError(distributed.PEER_GONE))
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):  # the terminal may be closed
                stream.flush()
        logging.shutdown()
        os._exit(status)
