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
    """Tells, while training runs, when no step was finished for ``stall_s`` seconds; again after twice the time, and so on.

    The line names rank, step and phase; the stacks of all threads of the rank go to ``log``.
    """

    def __init__(self, stall_s: float, log: Path | None):
        self.stall_s, self.log = stall_s, log
        self.step, self.phase = 0, "data"
        self._since = time.monotonic()
        self._limit = stall_s
        self._paused = True
        self._ended = threading.Event()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch until the block ends."""
        self.finished(self.step)
        self._paused = False
        threading.Thread(target=self._watch, daemon=True, name="stall watch").start()
        try:
            yield
        finally:
            self._ended.set()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Do not watch inside: no step is made there."""
        self._paused = True
        try:
            yield
        finally:
            self.finished(self.step)
            self._paused = False

    def finished(self, step: int) -> None:
        """``step`` steps are done."""
        self.step, self._since, self._limit = step, time.monotonic(), self.stall_s

    def _watch(self) -> None:
        while not self._ended.wait(min(1.0, self.stall_s / 4)):
            waited = time.monotonic() - self._since
            if not self._paused and waited > self._limit:
                self._limit *= 2
                self._tell(waited)

    def _tell(self, waited: float) -> None:
        where = ""
        if self.log is not None:
            try:
                with self.log.open("a", encoding="utf-8") as file:
                    faulthandler.dump_traceback(file)
                where = f"; its stacks are in {self.log}"
            except OSError:
                where = "; its stacks cannot be written"
        logger.warning(
            "rank %d has finished no step for %.0f s (train.stall_s): it is in step %d, phase %s%s",
            distributed.rank(),
            waited,
            self.step + 1,
            self.phase,
            where,
        )
