"""A run that makes no progress says where it hangs."""

from __future__ import annotations

import faulthandler
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from utils import distributed
from utils.events import Stalled

logger = logging.getLogger(__name__)


BEAT_S = 1.0
"""Time between two signs of life of a rank."""


class SignsOfLife:
    """State of each rank, told to the others by its watching thread: a process that is stopped, or whose machine is gone, tells
    nothing. Without a process group, there are no others."""

    def __init__(self) -> None:
        self.store = distributed.shared_store("signs of life")
        self._count = 0

    def give(self, state: str) -> None:
        """Tell the others what this rank does."""
        self._count += 1
        with self._store_may_be_gone():
            if self.store is not None:
                self.store.set(str(distributed.rank()), f"{self._count} {state}")

    def read(self) -> dict[int, str]:
        """The newest sign of each other rank: a number, and what the rank does."""
        signs: dict[int, str] = {}
        with self._store_may_be_gone():
            for rank in range(distributed.world_size()):
                if rank != distributed.rank() and self.store is not None and self.store.check([str(rank)]):
                    signs[rank] = self.store.get(str(rank)).decode()
        return signs

    @contextmanager
    def _store_may_be_gone(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError:
            self.store = None  # who kept the store has ended


class StallWatch:
    """Tells, inside :meth:`watching`, when no step was finished for ``stall_s`` seconds; again after twice the time, and so on.

    The line names rank, step and phase, and the ranks that give no sign of life; the stacks of all threads of the rank go to
    ``log``. Where no step is made, as in set-up and validation, which may last, it names that instead and is no warning.
    """

    def __init__(self, stall_s: float, log: Path | None):
        self.stall_s, self.log = stall_s, log
        self.step, self.phase = 0, "data"
        self._instead: str | None = None
        self._since = time.monotonic()
        self._limit = stall_s
        self._ended = threading.Event()
        self._signs = SignsOfLife()
        self._earlier: dict[int, str] | None = None
        """The signs of the other ranks when half of the time had passed."""

    @contextmanager
    def watching(self, instead: str | None = None) -> Iterator[None]:
        """Watch until the block ends. ``instead``: what is done inside, if no steps are."""
        self._instead = instead
        self.finished(self.step)
        threading.Thread(target=self._watch, daemon=True, name="stall watch").start()
        try:
            yield
        finally:
            self._ended.set()

    @contextmanager
    def doing(self, instead: str) -> Iterator[None]:
        """Inside, ``instead`` is done, and no step."""
        self._instead = instead
        self.finished(self.step)
        try:
            yield
        finally:
            self.finished(self.step)
            self._instead = None

    def finished(self, step: int) -> None:
        """``step`` steps are done."""
        self.step, self._since, self._limit, self._earlier = step, time.monotonic(), self.stall_s, None

    def _watch(self) -> None:
        while not self._ended.wait(min(BEAT_S, self.stall_s / 4)):
            self._signs.give(self._instead or f"step {self.step + 1}, phase {self.phase}")
            waited = time.monotonic() - self._since
            if waited > self._limit / 2 and self._earlier is None:
                self._earlier = self._signs.read()
            if waited > self._limit:
                self._limit *= 2
                self._tell(waited)

    def _tell(self, waited: float) -> None:
        stalled = Stalled(
            rank=distributed.rank(),
            waited_s=waited,
            step=self.step + 1,
            phase=self.phase,
            stacks=self._write_stacks(),
            silent_ranks=self._silent_ranks(),
        )
        if self._instead is None:
            logger.warning(stalled)
        else:
            logger.info("rank %d: %s has taken %.0f s by now%s", stalled.rank, self._instead, waited, stalled.details())

    def _silent_ranks(self) -> dict[int, str]:
        """The ranks that gave no sign of life since half of the time, with the phase that each was in last."""
        earlier, now = self._earlier or {}, self._signs.read()
        self._earlier = None
        return {rank: sign.partition(" ")[2] for rank, sign in now.items() if earlier.get(rank) == sign}

    def _write_stacks(self) -> str | None:
        """Write the stacks of all threads to the log; returns its path, or None if they cannot be written."""
        if self.log is None:
            return None
        try:
            with self.log.open("a", encoding="utf-8") as file:
                faulthandler.dump_traceback(file)
        except OSError:
            return None
        return str(self.log)
