"""Threads that fetch blocks before they are read."""

from __future__ import annotations

import atexit
import queue
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from contextlib import suppress

from utils.errors import UserError

_ASKED = 1 << 14
"""Jobs that are remembered, so that the records of a block do not each ask for it."""


class Ahead:
    """Jobs that bring blocks into the cache, in the order in which they are asked for.

    Args:
        threads: that many at a time. They end with the process.
    """

    def __init__(self, threads: int):
        self._jobs: queue.SimpleQueue[Callable[[], bool]] = queue.SimpleQueue()
        self._asked: OrderedDict[Hashable, None] = OrderedDict()
        self._useful = True
        atexit.register(self._end)
        for number in range(threads):
            threading.Thread(target=self._work, name=f"blocks-ahead-{number}", daemon=True).start()

    def ask(self, block: Hashable, bring: Callable[[], bool]) -> None:
        """Do a job, unless that for this ``block`` was asked for lately. ``bring`` returns whether the block could be kept."""
        if block in self._asked or not self._useful:
            return
        self._asked[block] = None
        if len(self._asked) > _ASKED:
            self._asked.popitem(last=False)
        self._jobs.put(bring)

    def _end(self) -> None:
        """Begin no more jobs: connections are closed next, while the threads still run."""
        self._useful = False

    def _work(self) -> None:
        while True:
            bring = self._jobs.get()
            # A block that cannot be had now is asked for again by whoever reads it, and the error is told there.
            with suppress(UserError):
                # What cannot be kept would be fetched twice.
                self._useful = self._useful and bring()
