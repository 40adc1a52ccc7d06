"""How often one client may ask."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque

from utils.errors import UserError

CLIENTS = 10_000
"""Clients that are remembered."""


class RateLimit:
    """Requests of each client in a minute.

    Args:
        per_minute: the most.
    """

    def __init__(self, per_minute: int):
        self.per_minute = per_minute
        self._times: OrderedDict[str, deque[float]] = OrderedDict()
        self._lock = threading.Lock()

    def count(self, client: str, now: float | None = None) -> None:
        """Count a request; ``now`` is in seconds.

        Raises:
            UserError: the client has asked too often.
        """
        now = time.monotonic() if now is None else now
        with self._lock:
            times = self._times.setdefault(client, deque())
            self._times.move_to_end(client)
            if len(self._times) > CLIENTS:
                self._times.popitem(last=False)
            while times and now - times[0] >= 60:
                times.popleft()
            if len(times) >= self.per_minute:
                raise UserError(f"{self.per_minute} questions a minute; ask again in {60 - (now - times[0]):.0f} s")
            times.append(now)
