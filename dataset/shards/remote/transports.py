"""Single requests to a server through fsspec. Every answer is checked against the request; repeating is left to the caller."""

from __future__ import annotations

import hashlib
import re
from typing import Any, NamedTuple, Protocol

from utils.addresses import scheme_of
from utils.errors import UserError

_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")
_EMPTY = re.compile(r"bytes \*/0")
_QUERY = re.compile(r"\?[^\s'\"]*")
_BUSY = (408, 425, 429)
_CONNECT_S = 10.0
"""The most seconds for a connection: an address that nobody has may give no sign at all."""
_BUFFER = 1 << 20
"""Bytes that a connection takes in before it pauses; with aiohttp's own number, pauses cost more than the rest."""
_PACKAGES = {"http": "aiohttp", "https": "aiohttp", "s3": "s3fs"}


class Piece(NamedTuple):
    """An answer: the bytes asked for, the size of the whole file, and a number that stands for its content (0: not known)."""

    content: bytes
    size: int
    version: int


class RequestError(Exception):
    """A request that failed, in a few words.

    Attributes:
        again: whether it may succeed when repeated.
        wait_s: seconds after which the server wants it to be repeated; 0: it names none.
    """

    def __init__(self, reason: str, *, again: bool, wait_s: float = 0):
        super().__init__(reason)
        self.again, self.wait_s = again, wait_s


class Transport(Protocol):
    """How files of a protocol are read. Belongs to the process that made it."""

    def read(self, address: str, start: int, end: int) -> Piece:
        """The bytes ``start`` … ``end`` - 1, fewer at the end of the file.

        Raises:
            RequestError: anything went wrong.
        """
        ...

    def find(self, pattern: str) -> list[str]:
        """The addresses of the files that match a glob pattern; raises :class:`RequestError`."""
        ...


def version_of(mark: str) -> int:
    """A number of 63 bits for what a server calls the version of a file (an ETag, a date); 0 for an empty mark."""
    return int.from_bytes(hashlib.sha256(mark.encode()).digest()[:8], "little") >> 1 if mark else 0


def open_transport(address: str, timeout_s: float, key: str) -> Transport:
    """The transport for an address.

    Raises:
        UserError: the package for its protocol is not installed.
    """
    scheme, told = scheme_of(address), address.partition("?")[0]
    try:
        return Http(timeout_s) if scheme in ("http", "https") else Store(scheme, timeout_s)
    except (ImportError, ValueError) as error:  # ValueError: no such protocol
        if isinstance(error, ImportError):
            package = _PACKAGES.get(scheme, f"a package for {scheme} ({error})")
            remedy = 'pip install ".[remote]"' if scheme in _PACKAGES else "install it"
            raise UserError(f"{key}: {told}: needs {package}, which is not installed: {remedy}") from None
        raise UserError(f"{key}: {told}: fsspec: {error}") from None


class Http:
    """HTTP(S) by range requests in fsspec's session.

    Its own ``cat_file`` would take whatever comes: the whole file from a server without ranges, or another file's bytes.
    No proxy is used, and no environment variable read but fsspec's own.
    """

    def __init__(self, timeout_s: float):
        import aiohttp
        import fsspec
        from fsspec.asyn import sync

        # EOFError: an answer that names no length ends too early. RuntimeError: a connection was closed by this side.
        self._errors: tuple[type[Exception], ...] = (
            aiohttp.ClientError,
            OSError,
            EOFError,
            TimeoutError,
            ValueError,
            RuntimeError,
        )
        self._timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=min(timeout_s, _CONNECT_S))
        # A filesystem of another process, from before a fork, cannot be used.
        self._files: Any = fsspec.filesystem("https", skip_instance_cache=True)
        self._session: Any = sync(self._files.loop, self._files.set_session)

    def read(self, address: str, start: int, end: int) -> Piece:
        from fsspec.asyn import sync

        try:
            return sync(self._files.loop, self._get, address, start, end)
        except self._errors as error:
            name, reason = type(error).__name__, _without_queries(str(error))
            # The session is closed when the process ends.
            raise RequestError(f"{name}: {reason}" if reason else name, again=not self._session.closed) from None

    def find(self, pattern: str) -> list[str]:
        raise RequestError("HTTP lists no files; write a range of numbers, such as {00000..00127}", again=False)

    async def _get(self, address: str, start: int, end: int) -> Piece:
        options = dict(self._files.kwargs)
        headers = {**options.pop("headers", {}), "Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}
        url = self._files.encode_url(address)
        options = {"read_bufsize": _BUFFER, **options, "headers": headers, "timeout": self._timeout}
        async with self._session.get(url, **options) as response:
            if scheme_of(address) == "https" and response.url.scheme != "https":
                raise RequestError(f"sends on to {response.url.host} without encryption", again=False)
            version = version_of(
                response.headers.get("ETag", "").removeprefix("W/") or response.headers.get("Last-Modified", "")
            )
            given = response.headers.get("Content-Range", "")
            if response.status == 416 and _EMPTY.fullmatch(given):
                return Piece(b"", 0, version)
            _check_status(response.status, response.reason or "", response.headers.get("Retry-After", ""))
            first, last, size = _checked_range(given, start, end)
            encoding = response.headers.get("Content-Encoding", "identity")
            if encoding != "identity" or response.content_length not in (None, last + 1 - first):
                about = f"{response.content_length} bytes as {encoding}"
                raise RequestError(f"answers with {about} for the range {given}", again=True)
            return Piece(await response.content.readexactly(last + 1 - first), size, version)


def _without_queries(text: str) -> str:
    """A message without what follows "?" in its addresses, which can be a signature: also of those that a server sends on to."""
    return _QUERY.sub("", text)


def _check_status(status: int, reason: str, retry_after: str) -> None:
    if status == 200:
        raise RequestError("status 200: the server does not answer requests for ranges of bytes", again=False)
    if status != 206:
        # A date, which the header may have too, is passed over.
        wait_s = float(retry_after) if status in (429, 503) and retry_after.isascii() and retry_after.isdigit() else 0
        raise RequestError(f"status {status} {reason}".rstrip(), again=status >= 500 or status in _BUSY, wait_s=wait_s)


def _checked_range(given: str, start: int, end: int) -> tuple[int, int, int]:
    """First and last byte and the size of the file, as a server names them, if these are the bytes asked for."""
    match = _RANGE.fullmatch(given)
    first, last, size = map(int, match.groups()) if match else (-1, -1, 0)
    if not match or first != start or last != min(end, size) - 1:
        raise RequestError(f"answers with the range {given[:80]!r} when asked for bytes {start}-{end - 1}", again=True)
    return first, last, size


class Store:
    """Any other protocol, with the filesystem that fsspec has for it and the credentials that this one finds by itself.

    A file's version is looked up once: a change while the process reads is seen only where the size differs.
    """

    def __init__(self, scheme: str, timeout_s: float):
        import fsspec

        options: dict[str, Any] = {}
        if scheme == "s3":
            # The caller repeats requests.
            options["config_kwargs"] = {
                "connect_timeout": min(timeout_s, _CONNECT_S),
                "read_timeout": timeout_s,
                "retries": {"max_attempts": 0},
            }
        self._scheme = scheme
        self._files: Any = fsspec.filesystem(scheme, skip_instance_cache=True, use_listings_cache=False, **options)
        self._files.retries = 1  # s3fs's own attempts; other filesystems do not look at it
        self._states: dict[str, tuple[int, int]] = {}

    def read(self, address: str, start: int, end: int) -> Piece:
        try:
            state = self._states.get(address)
            if state is None:
                about = self._files.info(address)
                mark = next((about[name] for name in ("ETag", "etag", "LastModified", "mtime") if about.get(name)), "")
                state = self._states[address] = int(about["size"]), version_of(str(mark))
            size, version = state
            end = min(end, size)
            content = self._files.cat_file(address, start=start, end=end) if start < end else b""
        except (FileNotFoundError, PermissionError) as error:
            raise RequestError(f"{type(error).__name__}: {error}", again=False) from None
        except Exception as error:  # each package has its own
            again = type(error).__name__ not in ("NoCredentialsError", "PartialCredentialsError")
            raise RequestError(f"{type(error).__name__}: {error}", again=again) from None
        if len(content) != max(0, end - start):
            self._states.pop(address, None)  # another thread may have been first
            raise RequestError(f"answers with {len(content)} bytes when asked for {start}-{end - 1}", again=True)
        return Piece(content, size, version)

    def find(self, pattern: str) -> list[str]:
        try:
            found = self._files.glob(pattern)
        except Exception as error:
            raise RequestError(f"{type(error).__name__}: {error}", again=True) from None
        return [f"{self._scheme}://{name}" for name in found]
