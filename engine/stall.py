"""Watches a run and reports where it hangs if it makes no progress."""

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
"""Seconds between heartbeats of a rank."""


class StallWatch:
    """Logs a report when no step has finished for ``stall_s`` seconds, and again each time the wait has doubled.

    The report names the rank, the step, the phase, and the ranks without a heartbeat. The stacks of all threads of this rank are
    written to ``log``. Outside training steps, such as during set-up and validation, long waits are normal. In this case, the
    report names the activity and is logged as information rather than as a warning.

    The thread that watches a rank also sends its heartbeats, which all ranks can read, so a rank's heartbeats stop if its process
    is suspended or its machine is lost. Without a process group, no heartbeats are sent.
    """

    def __init__(self, stall_s: float, log: Path | None):
        self.stall_s, self.log = stall_s, log
        self.step, self.phase = 0, "data"
        self._activity: str | None = None
        self._since = time.monotonic()
        self._limit = stall_s
        self._ended = threading.Event()
        self._store = distributed.shared_store("heartbeats")
        self._previous_heartbeats: dict[int, str] | None = None
        """Heartbeats of the other ranks, read halfway to the time limit; None until then."""

    @contextmanager
    def watching(self, activity: str | None = None) -> Iterator[None]:
        """Context that watches its block for stalls.

        Args:
            activity: what the block does; None if it runs training steps.
        """
        self._activity = activity
        self.progressed(self.step)
        threading.Thread(target=self._watch, daemon=True, name="stall watch").start()
        try:
            yield
        finally:
            self._ended.set()

    @contextmanager
    def doing(self, activity: str) -> Iterator[None]:
        """Context for an activity other than training steps."""
        self._activity = activity
        self.progressed(self.step)
        try:
            yield
        finally:
            self.progressed(self.step)
            self._activity = None

    def progressed(self, step: int) -> None:
        """Records that the host has enqueued ``step`` steps, and restarts the timer."""
        self.step, self._since, self._limit, self._previous_heartbeats = step, time.monotonic(), self.stall_s, None

    def _watch(self) -> None:
        heartbeats = 0
        while not self._ended.wait(min(BEAT_S, self.stall_s / 4)):
            heartbeats += 1
            if self._store is not None:
                state = self._activity or f"step {self.step + 1}, phase {self.phase}"
                try:
                    self._store.set(str(distributed.rank()), f"{heartbeats} {state}")
                except RuntimeError:
                    self._store = None  # the process that hosts the store has ended
            waited = time.monotonic() - self._since
            if waited > self._limit / 2 and self._previous_heartbeats is None:
                self._previous_heartbeats = self._read_heartbeats()
            if waited > self._limit:
                self._limit *= 2
                self._report(waited)

    def _read_heartbeats(self) -> dict[int, str]:
        """Returns the latest heartbeat of each other rank: a counter, followed by the state of the rank."""
        heartbeats: dict[int, str] = {}
        try:
            for rank in range(distributed.world_size()):
                if rank != distributed.rank() and self._store is not None and self._store.check([str(rank)]):
                    heartbeats[rank] = self._store.get(str(rank)).decode()
        except RuntimeError:
            self._store = None  # the process that hosts the store has ended
        return heartbeats

    def _report(self, waited: float) -> None:
        stalled = Stalled(
            rank=distributed.rank(),
            waited_s=waited,
            step=self.step + 1,
            phase=self.phase,
            stacks=self._write_stacks(),
            silent_ranks=self._silent_ranks(),
        )
        if self._activity is None:
            logger.warning(stalled)
        else:
            logger.info(
                "rank %d: %s has taken %.0f s so far%s", stalled.rank, self._activity, waited, stalled.details()
            )

    def _silent_ranks(self) -> dict[int, str]:
        """Returns the ranks whose last heartbeat is older than half the time limit, with the last known state of
        each."""
        previous, now = self._previous_heartbeats or {}, self._read_heartbeats()
        self._previous_heartbeats = None
        return {rank: beat.partition(" ")[2] for rank, beat in now.items() if previous.get(rank) == beat}

    def _write_stacks(self) -> str | None:
        """Writes the stacks of all threads to the log. Returns the path of the log, or None if it cannot be written."""
        if self.log is None:
            return None
        try:
            with self.log.open("a", encoding="utf-8") as file:
                faulthandler.dump_traceback(file)
        except OSError:
            return None
        return str(self.log)
