"""How often one visitor may ask, and how much all of them may upload."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from utils.errors import UserError

CLIENTS = 10_000
"""Clients that are remembered."""
KEPT_S = 3600
"""Age at which the files of visitors are deleted, in seconds."""
UPLOADED_BYTES = 2 * 1024**3
"""Bytes of all uploads in :data:`KEPT_S`, and so of those that are on the disk."""
FORM_BYTES = 64 * 1024
"""Bytes of a request beside those of its file."""

Message = MutableMapping[str, Any]
Application = Callable[
    [Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]
]


class RateLimit:
    """Requests of each client in a minute.

    Args:
        per_minute: the most.
        what: the requests, for the message.
    """

    def __init__(self, per_minute: int, what: str = "questions"):
        self.per_minute, self.what = per_minute, what
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
                raise UserError(f"{self.per_minute} {self.what} a minute; try again in {60 - (now - times[0]):.0f} s")
            times.append(now)


class UploadLimit:
    """Refuses uploads before they are read: of a client that uploads too often, too large ones, and all while the disk holds
    enough. ASGI middleware.

    Args:
        app: the page.
        per_minute: uploads of a client.
        most_bytes: of a file.
        total_bytes: of all uploads within :data:`KEPT_S`.
    """

    def __init__(self, app: Application, per_minute: int, most_bytes: int, total_bytes: int = UPLOADED_BYTES):
        self.app, self.most_bytes, self.total_bytes = app, most_bytes, total_bytes
        self._rate = RateLimit(per_minute, "uploads")
        self._taken: deque[tuple[float, int]] = deque()

    async def __call__(self, scope: Message, receive: Any, send: Any) -> None:
        """Answer an upload that is refused; hand on everything else."""
        if scope["type"] == "http" and scope["method"] == "POST" and scope["path"].rstrip("/").endswith("/upload"):
            try:
                self.count((scope.get("client") or ("",))[0], dict(scope["headers"]).get(b"content-length", b""))
            except UserError as error:
                headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
                await send({"type": "http.response.start", "status": 429, "headers": headers})
                await send({"type": "http.response.body", "body": str(error).encode()})
                return
        await self.app(scope, receive, send)

    def count(self, client: str, length: bytes, now: float | None = None) -> None:
        """Count an upload of a ``length``, as the header of its request says.

        Raises:
            UserError: it is refused.
        """
        now = time.monotonic() if now is None else now
        self._rate.count(client, now)
        if not length.isdigit():
            raise UserError("an upload without a length; send Content-Length")
        if int(length) > self.most_bytes + FORM_BYTES:
            raise UserError(
                f"{int(length) / 1024**2:.1f} MB; files exceed the maximum of {self.most_bytes / 1024**2:.0f} MB"
            )
        while self._taken and now - self._taken[0][0] >= KEPT_S:
            self._taken.popleft()
        if sum(size for _, size in self._taken) + int(length) > self.total_bytes:
            raise UserError("visitors have uploaded as much as the page keeps; try again later")
        self._taken.append((now, int(length)))
