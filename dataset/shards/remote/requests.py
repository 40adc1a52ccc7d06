"""Single requests to a server through fsspec. Each response is checked against the request; the caller retries."""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Any, NamedTuple

from utils.addresses import scheme_of
from utils.hub import hub_headers

if TYPE_CHECKING:
    from aiohttp import ClientResponse

_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")
_QUERY = re.compile(r"\?[^\s'\"]*")
_BUSY = (408, 425, 429)
_CONNECT_S = 10.0
"""Maximum time to connect, in seconds. Some hosts never respond."""
_BUFFER = 1 << 20
"""Number of bytes that a connection receives before it pauses. With aiohttp's default, most of the time is spent pausing."""


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


class Files:
    """The files of a protocol, read through fsspec, which finds the credentials automatically.

    The version of a file is looked up once. A change while the process reads the file is noticed only if the size changes.

    Args:
        scheme: the protocol, such as ``s3``.
        timeout_s: maximum time of a request, in seconds.

    Raises:
        ImportError: if the package for the protocol is not installed.
        ValueError: if fsspec does not know the protocol.
    """

    def __init__(self, scheme: str, timeout_s: float):
        import fsspec

        self._scheme = scheme
        options = self._options(timeout_s)
        self._files: Any = fsspec.filesystem(scheme, skip_instance_cache=True, use_listings_cache=False, **options)
        self._files.retries = 1  # attempts of s3fs; other file systems ignore it
        self._states: dict[str, tuple[int, int]] = {}

    def _options(self, timeout_s: float) -> dict[str, Any]:
        """Returns the options of fsspec's file system. It must not retry requests, because the caller does."""
        if self._scheme != "s3":
            return {}
        timeouts = {"connect_timeout": min(timeout_s, _CONNECT_S), "read_timeout": timeout_s}
        return {"config_kwargs": {**timeouts, "retries": {"max_attempts": 0}}}

    def read(self, address: str, start: int, end: int) -> Piece:
        """Reads the bytes ``start`` … ``end`` - 1, or fewer at the end of the file.

        Raises:
            RequestError: if the request fails or the response does not match the request.
        """
        try:
            state = self._states.get(address)
            if state is None:
                metadata = self._files.info(address)
                marks = (metadata.get(name) for name in ("ETag", "etag", "LastModified", "mtime"))
                version = version_of(str(next(filter(None, marks), "")))
                state = self._states[address] = int(metadata["size"]), version
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
        """Returns the URLs of the files that match a glob pattern; raises :class:`RequestError`."""
        try:
            found = self._files.glob(pattern, on_error="raise")  # by default, a listing that fails counts as empty
        except FileNotFoundError:
            return []
        except Exception as error:
            raise RequestError(f"{type(error).__name__}: {error}", again=True) from None
        return [f"{self._scheme}://{name}" for name in found]


class HttpFiles(Files):
    """Files that are read over HTTP(S). Every response states the size and the version of the file.

    fsspec does not check responses: it would accept the complete file from a server that does not support ranges, or an
    incomplete range. Its ``info`` reports every error as a missing file. Proxies are not used, and the only environment variables
    that are read are fsspec's.
    """

    def _options(self, timeout_s: float) -> dict[str, Any]:
        from aiohttp import ClientSession, ClientTimeout

        async def open_session(**options: Any) -> ClientSession:
            timeout = ClientTimeout(total=timeout_s, sock_connect=min(timeout_s, _CONNECT_S))
            return ClientSession(**{"read_bufsize": _BUFFER, **options, "timeout": timeout})

        return {"get_client": open_session}

    def read(self, address: str, start: int, end: int) -> Piece:
        from aiohttp import ClientError

        states: list[tuple[int, int]] = []

        async def check(response: ClientResponse) -> None:
            try:
                states.append(_checked_state(response, address, start, end))
            except RequestError:
                response.close()  # the rest of the response is not read
                raise

        headers = {**self._files.kwargs.get("headers", {}), **hub_headers(address), "Accept-Encoding": "identity"}
        try:
            content = self._files.cat_file(address, start=start, end=end, headers=headers, raise_for_status=check)
        except (
            ClientError,
            OSError,
            ValueError,
            RuntimeError,
        ) as error:  # RuntimeError: this side closed the connection
            if not (states and states[0][0] == 0):
                name, reason = type(error).__name__, _without_queries(str(error))
                raise RequestError(f"{name}: {reason}" if reason else name, again=True) from None
            content = b""  # no range of an empty file can be read
        size, version = states[0]
        if len(content) != min(end, size) - start:
            raise RequestError(f"answers with {len(content)} bytes when asked for {start}-{end - 1}", again=True)
        return Piece(content, size, version)

    def find(self, pattern: str) -> list[str]:
        raise RequestError("HTTP lists no files; write a range of numbers, such as {00000..00127}", again=False)


def _checked_state(response: ClientResponse, address: str, start: int, end: int) -> tuple[int, int]:
    """Returns the size and the version of the file from the headers of a response.

    Raises:
        RequestError: if the response does not contain the bytes ``start`` … ``end`` - 1, or fewer at the end of the file.
    """
    headers, status = response.headers, response.status
    if scheme_of(address) == "https" and response.url.scheme != "https":
        raise RequestError(f"redirects to {response.url.host} without encryption", again=False)
    version = version_of(headers.get("ETag", "").removeprefix("W/") or headers.get("Last-Modified", ""))
    given = headers.get("Content-Range", "")
    if status == 416 and given == "bytes */0":
        return 0, version
    if status == 200:
        raise RequestError("status 200: the server does not answer requests for ranges of bytes", again=False)
    if status != 206:
        # The header may also have a date, which is ignored.
        after = headers.get("Retry-After", "")
        wait_s = float(after) if status in (429, 503) and after.isascii() and after.isdigit() else 0
        reason = f"status {status} {response.reason or ''}".rstrip()
        raise RequestError(reason, again=status >= 500 or status in _BUSY, wait_s=wait_s)
    match = _RANGE.fullmatch(given)
    first, last, size = map(int, match.groups()) if match else (-1, -1, 0)
    if first != start or last != min(end, size) - 1:
        raise RequestError(f"answers with the range {given[:80]!r} when asked for bytes {start}-{end - 1}", again=True)
    encoding = headers.get("Content-Encoding", "identity")
    if encoding != "identity" or response.content_length not in (None, last + 1 - first):
        description = f"{response.content_length} bytes as {encoding}"
        raise RequestError(f"answers with {description} for the range {given}", again=True)
    return size, version


def version_of(mark: str) -> int:
    """Converts the version of a file that a server reports (an ETag or a date) to a 63-bit number; 0 for an empty mark."""
    return int.from_bytes(hashlib.sha256(mark.encode()).digest()[:8], "little") >> 1 if mark else 0


def _without_queries(text: str) -> str:
    """Removes the queries after "?" from all URLs in a message, including redirects. A query may contain a signature."""
    return _QUERY.sub("", text)
