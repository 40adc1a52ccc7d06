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


class Heartbeats:
    """Publishes the state of this rank in a store that all ranks share, and reads the states of the other ranks from the store.

    The thread of :class:`StallWatch` sends the heartbeats, so they stop if a process is suspended or its machine is lost. Without
    a process group, nothing is sent.
    """

    def __init__(self) -> None:
        self.store = distributed.shared_store("heartbeats")
        self._count = 0

    def send(self, state: str) -> None:
        """Sends a heartbeat with the current state of this rank."""
        self._count += 1
        with self._store_may_be_gone():
            if self.store is not None:
                self.store.set(str(distributed.rank()), f"{self._count} {state}")

    def read(self) -> dict[int, str]:
        """Returns the latest heartbeat of each other rank: a counter, followed by the state of the rank."""
        heartbeats: dict[int, str] = {}
        with self._store_may_be_gone():
            for rank in range(distributed.world_size()):
                if rank != distributed.rank() and self.store is not None and self.store.check([str(rank)]):
                    heartbeats[rank] = self.store.get(str(rank)).decode()
        return heartbeats

    @contextmanager
    def _store_may_be_gone(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError:
            self.store = None  # the process that hosts the store has ended


class StallWatch:
    """Logs a report when no step has finished for ``stall_s`` seconds, and again each time the wait has doubled.

    The report names the rank, the step, the phase, and the ranks without a heartbeat. The stacks of all threads of this rank are
    written to ``log``. Outside training steps, such as during set-up and validation, long waits are normal. In this case, the
    report names the activity and is logged as information rather than as a warning.
    """

    def __init__(self, stall_s: float, log: Path | None):
        self.stall_s, self.log = stall_s, log
        self.step, self.phase = 0, "data"
        self._activity: str | None = None
        self._since = time.monotonic()
        self._limit = stall_s
        self._ended = threading.Event()
        self._heartbeats = Heartbeats()
        self._previous_heartbeats: dict[int, str] | None = None
        """Heartbeats of the other ranks, read halfway to the time limit; None until then."""

    @contextmanager
    def watching(self, activity: str | None = None) -> Iterator[None]:
        """Context that watches its block for stalls.

        Args:
            activity: what the block does; None if it runs training steps.
        """
        self._activity = activity
        self.finished(self.step)
        threading.Thread(target=self._watch, daemon=True, name="stall watch").start()
        try:
            yield
        finally:
            self._ended.set()

    @contextmanager
    def doing(self, activity: str) -> Iterator[None]:
        """Context for an activity other than training steps."""
        self._activity = activity
        self.finished(self.step)
        try:
            yield
        finally:
            self.finished(self.step)
            self._activity = None

    def finished(self, step: int) -> None:
        """Records that ``step`` steps are finished, and restarts the timer."""
        self.step, self._since, self._limit, self._previous_heartbeats = step, time.monotonic(), self.stall_s, None

    def _watch(self) -> None:
        while not self._ended.wait(min(BEAT_S, self.stall_s / 4)):
            self._heartbeats.send(self._activity or f"step {self.step + 1}, phase {self.phase}")
            waited = time.monotonic() - self._since
            if waited > self._limit / 2 and self._previous_heartbeats is None:
                self._previous_heartbeats = self._heartbeats.read()
            if waited > self._limit:
                self._limit *= 2
                self._report(waited)

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
        previous, now = self._previous_heartbeats or {}, self._heartbeats.read()
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
