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

logger = logging.getLogger(__name__)


class StallWatch:
    """Tells, inside :meth:`watching`, when no step was finished for ``stall_s`` seconds; again after twice the time, and so on.

    The line names rank, step and phase; the stacks of all threads of the rank go to ``log``. Where no step is made, as in set-up
    and validation, which may last, it names that instead and is no warning.
    """

    def __init__(self, stall_s: float, log: Path | None):
        self.stall_s, self.log = stall_s, log
        self.step, self.phase = 0, "data"
        self._instead: str | None = None
        self._since = time.monotonic()
        self._limit = stall_s
        self._ended = threading.Event()

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
        self.step, self._since, self._limit = step, time.monotonic(), self.stall_s

    def _watch(self) -> None:
        while not self._ended.wait(min(1.0, self.stall_s / 4)):
            waited = time.monotonic() - self._since
            if waited > self._limit:
                self._limit *= 2
                self._tell(waited)

    def _tell(self, waited: float) -> None:
        where, rank = self._write_stacks(), distributed.rank()
        if self._instead is not None:
            logger.info("rank %d: %s has taken %.0f s by now%s", rank, self._instead, waited, where)
            return
        logger.warning(
            "rank %d has finished no step for %.0f s (train.stall_s): it is in step %d, phase %s%s",
            rank,
            waited,
            self.step + 1,
            self.phase,
            where,
        )

    def _write_stacks(self) -> str:
        """Write the stacks of all threads to the log; returns the end of the line that says so."""
        if self.log is None:
            return ""
        try:
            with self.log.open("a", encoding="utf-8") as file:
                faulthandler.dump_traceback(file)
        except OSError:
            return "; its stacks cannot be written"
        return f"; its stacks are in {self.log}"
