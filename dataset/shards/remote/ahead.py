"""Threads that prefetch blocks."""

from __future__ import annotations

import atexit
import logging
import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable

from utils.errors import UserError

_MAX_REMEMBERED = 1 << 14
"""Number of recent jobs that are remembered, so that the records of a block do not request it again."""
_PAUSE_S = 60.0

logger = logging.getLogger(__name__)


class Prefetcher:
    """Runs jobs that prefetch blocks into the cache, in the order of requests.

    If the cache cannot store a block, jobs are dropped for :data:`_PAUSE_S` seconds, because their blocks would be fetched twice.
    A thread whose job fails also waits for this time, and then continues with the next job. Only the first of several consecutive
    pauses is logged.

    Args:
        threads: number of threads. They end with the process.
    """

    def __init__(self, threads: int):
        self._jobs: queue.SimpleQueue[Callable[[], bool]] = queue.SimpleQueue()
        self._requested: OrderedDict[Hashable, None] = OrderedDict()
        self._ended = threading.Event()
        self._dropped_until = 0.0
        self._reported = False
        atexit.register(self._ended.set)  # connections are closed next, while the threads still run
        for number in range(threads):
            threading.Thread(target=self._work, name=f"blocks-ahead-{number}", daemon=True).start()

    @property
    def ended(self) -> bool:
        """True once the process ends, when connections are closed."""
        return self._ended.is_set()

    def submit(self, block: Hashable, job: Callable[[], bool]) -> None:
        """Queues ``job``, unless ``block`` was requested recently. ``job`` returns False if the cache cannot store the block."""
        if block in self._requested or self._drops():
            return
        self._requested[block] = None
        if len(self._requested) > _MAX_REMEMBERED:
            self._requested.popitem(last=False)
        self._jobs.put(job)

    def _drops(self) -> bool:
        return self.ended or time.monotonic() < self._dropped_until

    def _work(self) -> None:
        while True:
            job = self._jobs.get()
            if self._drops():
                continue
            try:
                kept = job()
            except UserError as error:
                # The reader of the block requests it again, and raises the error if it persists.
                self._report(str(error))
                self._ended.wait(_PAUSE_S)
                continue
            if kept:
                self._reported = False
            else:
                self._dropped_until = time.monotonic() + _PAUSE_S
                self._report("the cache cannot store them")

    def _report(self, reason: str) -> None:
        if not self._reported and not self.ended:
            logger.warning(
                "prefetching of blocks pauses for %g s at a time until this is resolved: %s", _PAUSE_S, reason
            )
        self._reported = True
