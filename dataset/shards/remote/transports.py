"""Single requests to a server through fsspec. Each response is checked against the request; the caller retries."""

from __future__ import annotations

import hashlib
import re
from typing import Any, NamedTuple, Protocol

from utils.addresses import scheme_of
from utils.errors import UserError
from utils.hub import hub_headers

_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")
_EMPTY = re.compile(r"bytes \*/0")
_QUERY = re.compile(r"\?[^\s'\"]*")
_BUSY = (408, 425, 429)
_CONNECT_S = 10.0
"""Maximum time to connect, in seconds. Some hosts never respond."""
_BUFFER = 1 << 20
"""Number of bytes that a connection receives before it pauses. With aiohttp's default, most of the time is spent pausing."""
_PACKAGES = {"http": "aiohttp", "https": "aiohttp", "s3": "s3fs"}


class Piece(NamedTuple):
    """A response: the requested bytes, the size of the whole file, and its version as a number (0 if unknown)."""

    content: bytes
    size: int
    version: int


class RequestError(Exception):
    """A request failed, with a short reason.

    Attributes:
        again: True if a retry may succeed.
        wait_s: seconds to wait before a retry, as the server requested; 0 if the server requested no wait.
    """

    def __init__(self, reason: str, *, again: bool, wait_s: float = 0):
        super().__init__(reason)
        self.again, self.wait_s = again, wait_s


class Transport(Protocol):
    """Reads files of a protocol. It must only be used in the process that created it."""

    def read(self, address: str, start: int, end: int) -> Piece:
        """Reads the bytes ``start`` … ``end`` - 1, or fewer at the end of the file.

        Raises:
            RequestError: if the request fails or the response does not match the request.
        """
        ...

    def find(self, pattern: str) -> list[str]:
        """Returns the URLs of the files that match a glob pattern; raises :class:`RequestError`."""
        ...


def version_of(mark: str) -> int:
    """Converts the version of a file that a server reports (an ETag or a date) to a 63-bit number; 0 for an empty mark."""
    return int.from_bytes(hashlib.sha256(mark.encode()).digest()[:8], "little") >> 1 if mark else 0


def open_transport(address: str, timeout_s: float, key: str) -> Transport:
    """Opens the transport for a URL.

    Raises:
        UserError: if the package for its protocol is not installed.
    """
    scheme, shown = scheme_of(address), address.partition("?")[0]
    try:
        return Http(timeout_s) if scheme in ("http", "https") else Store(scheme, timeout_s)
    except (ImportError, ValueError) as error:  # ValueError: no such protocol
        if isinstance(error, ImportError):
            package = _PACKAGES.get(scheme, f"a package for {scheme} ({error})")
            remedy = 'pip install ".[remote]"' if scheme in _PACKAGES else "install it"
            raise UserError(f"{shown}: needs {package}, which is not installed: {remedy}", where=key) from None
        raise UserError(f"{shown}: fsspec: {error}", where=key) from None


class Http:
    """HTTP(S) with range requests in fsspec's session.

    fsspec's ``cat_file`` does not check responses: it would accept the complete file from a server that does not support ranges,
    or the bytes of a different file. Proxies are not used, and the only environment variables that are read are fsspec's.
    """

    def __init__(self, timeout_s: float):
        import aiohttp
        import fsspec
        from fsspec.asyn import sync

        # EOFError: a response without a length ends too early. RuntimeError: a connection was closed by this side.
        self._errors: tuple[type[Exception], ...] = (
            aiohttp.ClientError,
            OSError,
            EOFError,
            TimeoutError,
            ValueError,
            RuntimeError,
        )
        self._timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=min(timeout_s, _CONNECT_S))
        # A file system that was created before a fork, in another process, cannot be used.
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
        asked = {"Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}
        headers = {**options.pop("headers", {}), **hub_headers(address), **asked}
        url = self._files.encode_url(address)
        options = {"read_bufsize": _BUFFER, **options, "headers": headers, "timeout": self._timeout}
        async with self._session.get(url, **options) as response:
            if scheme_of(address) == "https" and response.url.scheme != "https":
                raise RequestError(f"redirects to {response.url.host} without encryption", again=False)
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
                description = f"{response.content_length} bytes as {encoding}"
                raise RequestError(f"answers with {description} for the range {given}", again=True)
            return Piece(await response.content.readexactly(last + 1 - first), size, version)


def _without_queries(text: str) -> str:
    """Removes the queries after "?" from all URLs in a message, including redirects. A query may contain a signature."""
    return _QUERY.sub("", text)


def _check_status(status: int, reason: str, retry_after: str) -> None:
    if status == 200:
        raise RequestError("status 200: the server does not answer requests for ranges of bytes", again=False)
    if status != 206:
        # The header may also have a date, which is ignored.
        wait_s = float(retry_after) if status in (429, 503) and retry_after.isascii() and retry_after.isdigit() else 0
        raise RequestError(f"status {status} {reason}".rstrip(), again=status >= 500 or status in _BUSY, wait_s=wait_s)


def _checked_range(given: str, start: int, end: int) -> tuple[int, int, int]:
    """Parses the first byte, the last byte and the file size in a response. Raises :class:`RequestError` if these are not the
    requested bytes."""
    match = _RANGE.fullmatch(given)
    first, last, size = map(int, match.groups()) if match else (-1, -1, 0)
    if not match or first != start or last != min(end, size) - 1:
        raise RequestError(f"answers with the range {given[:80]!r} when asked for bytes {start}-{end - 1}", again=True)
    return first, last, size


class Store:
    """Reads files of any other protocol through fsspec, which finds the credentials automatically.

    The version of a file is looked up once. A change while the process reads the file is noticed only if the size changes.
    """

    def __init__(self, scheme: str, timeout_s: float):
        import fsspec

        options: dict[str, Any] = {}
        if scheme == "s3":
            # The caller retries requests.
            options["config_kwargs"] = {
                "connect_timeout": min(timeout_s, _CONNECT_S),
                "read_timeout": timeout_s,
                "retries": {"max_attempts": 0},
            }
        self._scheme = scheme
        self._files: Any = fsspec.filesystem(scheme, skip_instance_cache=True, use_listings_cache=False, **options)
        self._files.retries = 1  # attempts of s3fs; other file systems ignore it
        self._states: dict[str, tuple[int, int]] = {}

    def read(self, address: str, start: int, end: int) -> Piece:
        try:
            state = self._states.get(address)
            if state is None:
                metadata = self._files.info(address)
                mark = next(
                    (metadata[name] for name in ("ETag", "etag", "LastModified", "mtime") if metadata.get(name)), ""
                )
                state = self._states[address] = int(metadata["size"]), version_of(str(mark))
            size, version = state
            end = min(end, size)
            content = self._files.cat_file(address, start=start, end=end) if start < end else b""
        except (FileNotFoundError, PermissionError) as error:
            raise RequestError(f"{type(error).__name__}: {error}", again=False) from None
        except Exception as error:  # each package raises its own exceptions
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
