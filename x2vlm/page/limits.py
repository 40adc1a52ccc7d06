"""Limits of the page's server. It rejects requests for other hosts, requests by other websites, large requests, and the
requests of visitors who send or upload too much."""

from __future__ import annotations

import ipaddress
import re
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from typing import Any

from utils.errors import UserError

CLIENTS = 10_000
"""Maximum number of clients that are remembered."""
KEPT_S = 3600
"""Age at which uploaded files are deleted, in seconds."""
UPLOADED_BYTES = 2 * 1024**3
"""Maximum size, in bytes, of all uploads within :data:`KEPT_S`, and therefore of the uploads on disk."""
FORM_BYTES = 64 * 1024
"""Maximum number of bytes that an upload contains in addition to its file."""
MESSAGE_BYTES = 1024**2
"""Maximum body size of any other request, in bytes: a question contains only a few texts and the names of uploaded files."""
HOST = re.compile(r"(\[[^\]]*\]|[^:]*)(:\d*)?")
"""Pattern of the header ``Host``: a host name or an IP address, optionally followed by a port."""
DEFAULT_PORTS = {"http": ":80", "https": ":443"}
"""The port of each scheme, which browsers omit in the headers ``Host`` and ``Origin``."""

Message = MutableMapping[str, Any]
Application = Callable[
    [Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]
]


class RateLimit:
    """Limits the requests of each client per minute.

    Args:
        per_minute: maximum number of requests.
        what: the noun that messages use for the requests.
    """

    def __init__(self, per_minute: int, what: str = "questions"):
        self.per_minute, self.what = per_minute, what
        self._times: OrderedDict[str, deque[float]] = OrderedDict()
        self._lock = threading.Lock()

    def count(self, client: str, now: float | None = None) -> None:
        """Counts a request. ``now`` is the time in seconds.

        Raises:
            UserError: the client has made too many requests.
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
                raise UserError(
                    f"{self.per_minute} {self.what} per minute", remedy=f"try again in {60 - (now - times[0]):.0f} s"
                )
            times.append(now)


def is_loopback(host: str) -> bool:
    """Returns True if a host name or an IP address can only be reached from this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class SiteCheck:
    """Rejects requests that another website makes through the browser of its visitor. ASGI middleware.

    A website can send requests to this server, such as uploads. Its origin is then in the header ``Origin``. It can also make its
    own host name resolve to the IP address of this server (DNS rebinding), and then read the server's answers. The header
    ``Host`` of such a request is the host name of the website.

    Args:
        app: the page.
        names: names of this server.
        proxies: names of proxies in front of this server. A proxy may replace ``Host``, so that it differs from ``Origin``.
        loopback_only: True if the server listens on a loopback address; otherwise any IP address is accepted as a host, because
            DNS rebinding needs a host name.
    """

    def __init__(self, app: Application, names: Collection[str], proxies: Collection[str], loopback_only: bool):
        self.app, self.loopback_only = app, loopback_only
        self.proxies = {name.lower() for name in proxies}
        self.names = {name.lower() for name in names} | self.proxies

    async def __call__(self, scope: Message, receive: Any, send: Any) -> None:
        """Responds to a rejected request, or passes the request on."""
        if scope["type"] in ("http", "websocket"):
            hosts, origins = _values(scope, b"host"), _values(scope, b"origin")
            if len(hosts) != 1 or not self.accepts(hosts[0]):
                host = ", ".join(hosts)[:200]
                message = f"the host {host!r} is not this server; start the server with --name to allow this name"
                await _refuse(send, 400, message, scope["type"])
                return
            if origins and (len(origins) != 1 or not self.accepts_origin(origins[0], hosts[0])):
                origin = ", ".join(origins)[:200]
                message = f"the origin {origin!r} is another website; start the server with --name to allow a proxy"
                await _refuse(send, 403, message, scope["type"])
                return
        await self.app(scope, receive, send)

    def accepts(self, header: str) -> bool:
        """Returns True if a header ``Host`` names this server."""
        match = HOST.fullmatch(header)
        host = _host_in(match)
        if is_loopback(host) or host in self.names:
            return True
        try:
            return not self.loopback_only and bool(ipaddress.ip_address(host))
        except ValueError:
            return False

    def accepts_origin(self, origin: str, header: str) -> bool:
        """Returns True if a header ``Origin`` is the origin of the page at ``header``, the header ``Host``, or of a proxy."""
        scheme, _, address = origin.lower().partition("://")
        if scheme not in DEFAULT_PORTS:
            return False
        default = DEFAULT_PORTS[scheme]
        if address.removesuffix(default) == header.lower().removesuffix(default):
            return True
        return _host_in(HOST.fullmatch(address)) in self.proxies


def _host_in(match: re.Match[str] | None) -> str:
    """Returns the host in a match of :data:`HOST`, or an empty string."""
    return match[1].strip("[]").lower() if match else ""


def _values(scope: Message, header: bytes) -> list[str]:
    """Returns the values of a header."""
    return [value.decode("latin-1") for name, value in scope["headers"] if name == header]


class BodyLimit:
    """Rejects requests whose body is too large, either because of the length in the header, or while the body is received. ASGI
    middleware.

    Args:
        app: the page.
        file_bytes: maximum size of an uploaded file.
    """

    def __init__(self, app: Application, file_bytes: int):
        self.app, self.file_bytes = app, file_bytes

    async def __call__(self, scope: Message, receive: Any, send: Any) -> None:
        """Responds to a rejected request, or passes the request on and counts the bytes of its body."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        limit, reason = MESSAGE_BYTES, f"requests exceed the maximum of {MESSAGE_BYTES / 1024**2:.0f} MB"
        if _is_upload(scope):
            limit, reason = (
                self.file_bytes + FORM_BYTES,
                f"files exceed the maximum of {self.file_bytes / 1024**2:.0f} MB",
            )
        length = dict(scope["headers"]).get(b"content-length", b"")
        if length.isdigit() and (len(length) > 18 or int(length) > limit):
            await _refuse(send, 413, reason)
            return
        received, is_answered, is_refused = 0, False, False

        async def counted() -> Message:
            nonlocal received, is_refused
            message: Message = await receive()
            received += len(message.get("body", b""))
            if received <= limit:
                return message
            if not is_answered and not is_refused:
                is_refused = True
                await _refuse(send, 413, reason)
            return {"type": "http.disconnect"}

        async def unless_refused(message: Message) -> None:
            nonlocal is_answered
            if not is_refused:
                is_answered = True
                await send(message)

        await self.app(scope, counted, unless_refused)


class UploadLimit:
    """Rejects uploads before they are read: from a client that uploads too often, and from every client while the uploads on disk
    take ``total_bytes``. ASGI middleware, behind a :class:`BodyLimit`.

    Args:
        app: the page.
        per_minute: maximum number of uploads per client.
        total_bytes: maximum size of all uploads within :data:`KEPT_S`.
    """

    def __init__(self, app: Application, per_minute: int, total_bytes: int = UPLOADED_BYTES):
        self.app, self.total_bytes = app, total_bytes
        self._rate = RateLimit(per_minute, "uploads")
        self._taken: deque[tuple[float, int]] = deque()

    async def __call__(self, scope: Message, receive: Any, send: Any) -> None:
        """Responds to a rejected upload, or passes the request on."""
        if _is_upload(scope):
            try:
                self.count((scope.get("client") or ("",))[0], dict(scope["headers"]).get(b"content-length", b""))
            except UserError as error:
                await _refuse(send, 429, str(error))
                return
        await self.app(scope, receive, send)

    def count(self, client: str, length: bytes, now: float | None = None) -> None:
        """Counts an upload. ``length`` is the upload's number of bytes according to the request's header.

        Raises:
            UserError: the upload is rejected.
        """
        now = time.monotonic() if now is None else now
        self._rate.count(client, now)
        if not length.isdigit():
            raise UserError("the upload has no Content-Length", remedy="send this header")
        while self._taken and now - self._taken[0][0] >= KEPT_S:
            self._taken.popleft()
        if sum(size for _, size in self._taken) + int(length) > self.total_bytes:
            raise UserError("the page cannot store more uploads at the moment", remedy="try again later")
        self._taken.append((now, int(length)))


def _is_upload(scope: Message) -> bool:
    is_post = scope["type"] == "http" and scope["method"] == "POST"
    return is_post and scope["path"].rstrip("/").endswith("/upload")


async def _refuse(send: Any, status: int, message: str, kind: str = "http") -> None:
    """Sends a one-line response, and closes the connection without reading the body. A websocket is closed without a message."""
    if kind == "websocket":
        await send({"type": "websocket.close"})
        return
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": message.encode()})
