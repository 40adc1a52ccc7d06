"""Stop a run on request, at a place from which it can be resumed.

A signal sets a flag. While steps are trained, the flag travels with the sum of the losses over ranks, so that all ranks stop
after the same step, and no step waits for it. Set-up, validation and evaluation do not change the weights: there a thread ends
the process at once, after writing the checkpoint that the steps so far need. Rank 0 does so first. The other ranks go on until it
has: it may be through with the evaluation already, and then they are needed. The thread also ends a rank that rank 0 has left,
whatever it waits for.
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
from utils.processes import ECHO_S, GRACE_S, MISTAKE, signal_name, status_of_stop, stop_signals

logger = logging.getLogger(__name__)

POLL_S = 0.25


class Stopped(Exception):  # noqa: N818 (it is no error)
    """The run was asked to stop, and all ranks have. ``status``: of the process."""

    def __init__(self, message: str, status: int):
        super().__init__(message)
        self.status = status


class StopRequest:
    """Context manager of the main thread: what asks this process to stop from now on. A second signal ends the process at once.

    Args:
        grace_s: seconds from a signal until the other ranks end without rank 0.
    """

    def __init__(self, grace_s: float = GRACE_S):
        self.grace_s = grace_s
        self.signum: int | None = None
        self._received_s: float | None = None
        """Time of this process's first signal."""
        self._known_s: float | None = None
        """Time when the watching thread first saw a signal, this process's or another's."""
        self.store = distributed.shared_store("stop")
        self._left = False
        """Whether rank 0 has ended while this rank runs."""
        self._status_of_rank_0: int | None = None
        """Exit status that rank 0 has told before it ended."""
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
        """Name of the signal, for messages."""
        return "another rank" if self.signum is None else signal_name(self.signum)

    @property
    def status(self) -> int:
        """Exit status of a process that stops."""
        return status_of_stop(self.signum or signal.SIGTERM)

    @contextmanager
    def at_once(self, save: Callable[[], str] = lambda: "nothing was trained yet") -> Iterator[None]:
        """Inside, a request ends the process at once. ``save``: on rank 0, what is to be done before; returns what to say."""
        with self._lock:
            outer, self._save = self._save, save
        try:
            yield
        finally:
            with self._lock:  # waits for ever if the process is being ended
                self._save = outer

    def _receive(self, signum: int, _: FrameType | None) -> None:
        now = time.monotonic()
        if self._received_s is None:
            self._received_s = now
        elif now - self._received_s > ECHO_S:
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
        """Learn whether rank 0 has ended; tell the other ranks of a signal, and learn of theirs."""
        if self.store is None:
            return
        try:
            # Before the signal, which rank 0 has told by then: else it could end between both looks, as if without one.
            self._left = distributed.rank() != 0 and self.store.check(["ended"])
            if self._left:
                self._status_of_rank_0 = int(self.store.get("ended"))
            if self.store.check(["signal"]):
                self.signum = self.signum or int(self.store.get("signal"))
            elif self.signum is not None:
                self.store.set("signal", str(int(self.signum)))
        except RuntimeError:  # who kept the store has ended
            self._left, self.store = True, None

    def _may_end(self) -> bool:
        """Whether this rank is to end: rank 0 on a signal, the others once it has, since the launcher stops them all then."""
        if self.signum is None:
            return self._left
        self._known_s = self._known_s or time.monotonic()
        late = time.monotonic() > self._known_s + self.grace_s
        return self._left or late or self.store is None or distributed.rank() == 0

    def _end(self, save: Callable[[], str]) -> None:
        """End this process, without what Python does at the end: threads and workers may be anywhere."""
        status = self.status if self._status_of_rank_0 is None else self._status_of_rank_0
        if distributed.rank() == 0:
            try:
                logger.warning(events.Stopped(by=self.name, message=save()))
            except Exception as error:  # the process ends all the same; a requeued one would fail as this one has
                logger.warning(events.Stopped(by=self.name, message=f"the checkpoint could not be saved: {error}"))
                status = MISTAKE
            with contextlib.suppress(RuntimeError):  # who kept the store has ended
                if self.store is not None:
                    self.store.set("ended", str(status))
                    if status == MISTAKE:
                        time.sleep(2 * POLL_S)  # this process may keep the store, which the others have to read before
        elif self.signum is None:
            status = report(PeerLostError(distributed.PEER_GONE))
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):  # a terminal that is gone
                stream.flush()
        logging.shutdown()
        os._exit(status)
