"""Remote shards: finds them by ranges and patterns of URLs, and reads them as files."""

from __future__ import annotations

import functools
import io
import itertools
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO
from urllib.parse import SplitResult, urlsplit

from dataset.config import BLOCK_BYTES
from dataset.shards.remote.server import Server, without_query
from utils.addresses import scheme_of
from utils.errors import UserError

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_MAX_FILES = 1_000_000
"""Maximum number of files of an entry."""
_BUFFER = 1 << 16
"""Size in bytes of the read buffer. It is larger than Python's default, because each copy from a block is a Python call."""


class RemoteShard:
    """A shard at a URL, with the subset of the interface of :class:`pathlib.Path` that shard readers use.

    Its string form is the URL without the query after "?", which may contain a signature.
    """

    __slots__ = ("_query", "_server", "_shown")

    def __init__(self, address: str, server: Server):
        self._shown, mark, query = address.partition("?")
        self._query, self._server = mark + query, server

    def __str__(self) -> str:
        return self._shown

    def __repr__(self) -> str:
        return f"RemoteShard({self._shown!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RemoteShard) and self._shown == other._shown

    def __hash__(self) -> int:
        return hash(self._shown)

    @property
    def name(self) -> str:
        return self._shown.rpartition("/")[2]

    @property
    def suffix(self) -> str:
        return os.path.splitext(self._shown)[1]

    @property
    def parent(self) -> Path:
        """The folder part of the URL. No local folder has this path, so relative image paths in the shard are not found."""
        return _folder(self._shown.rpartition("/")[0])

    def state(self) -> tuple[int, int]:
        """Asks the server for the size in bytes and the version of the shard.

        Raises:
            UserError: if the shard cannot be read.
        """
        return self._server.state(self._shown + self._query)

    def open(self, state: tuple[int, int] | None = None) -> BinaryIO:
        """Opens the shard as a file.

        Args:
            state: state of the shard when it was indexed; if None, the current state.
        """
        return io.BufferedReader(_Content(self._server, self._shown + self._query, state or self.state()), _BUFFER)

    def prefetch(self, state: tuple[int, int], start: int, end: int) -> None:
        """Prefetches the bytes ``start`` … ``end`` - 1; see :meth:`~dataset.shards.remote.server.Server.prefetch`."""
        for number in range(start // BLOCK_BYTES, (end - 1) // BLOCK_BYTES + 1):
            self._server.prefetch(self._shown + self._query, state, number)

    @property
    def prefetches(self) -> bool:
        return self._server.config.ahead > 0


class _Content(io.RawIOBase):
    """A remote file, open for reading."""

    def __init__(self, server: Server, address: str, state: tuple[int, int]):
        self._server, self._address, self._state, self._at = server, address, state, 0
        self._number, self._block = -1, memoryview(b"")

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._state[0]}[whence]
        if self._at < 0:
            self._at = 0
            raise ValueError("the position is before the start of the file")
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        number, first = divmod(self._at, BLOCK_BYTES)
        if self._at >= self._state[0] or not len(buffer):
            return 0
        if number != self._number:
            self._block = memoryview(self._server.block(self._address, self._state, number))
            self._number = number
        part = self._block[first : first + len(buffer)]
        buffer[: len(part)] = part
        self._at += len(part)
        return len(part)


@functools.lru_cache(maxsize=64)
def _folder(address: str) -> Path:
    return Path(address)


def find_remote(entry: str, server: Server) -> list[RemoteShard]:
    """Returns the shards of an entry.

    An entry is a URL. It may have ranges of numbers (``{000..127}``), or be a glob pattern if the protocol can list files.

    Raises:
        UserError: if the protocol is not allowed, the URL has a password or an invalid host or port, a range is empty, no file
            matches, or there are too many files. The message is one line.
    """
    key, scheme = server.key, scheme_of(entry)
    if scheme not in server.config.protocols:
        raise UserError(
            f"{without_query(entry)}: URLs may begin with {', '.join(server.config.protocols)}",
            where=key,
            remedy="other protocols of fsspec are untested, and must be added to data.remote.protocols",
        )
    for match in _RANGE.finditer(entry):
        if int(match[1]) > int(match[2]):
            raise UserError(
                f"{without_query(entry)}: the range {match[0]} is empty",
                where=key,
                remedy="write the smaller number first",
            )
    if "@" in _parts(entry, key).netloc:
        raise UserError(
            f"a URL of {scheme} has a user or password in it, which would be logged", where=key, remedy="remove them"
        )
    addresses = list(itertools.islice(_expanded(entry), _MAX_FILES + 1))
    if len(addresses) > _MAX_FILES:
        raise UserError(
            f"{without_query(entry)} has more than {_MAX_FILES:,} files", where=key, remedy="write smaller ranges"
        )
    found: list[str] = []
    for address in addresses:
        listed = address + "*" if address.endswith("/") else address
        path = _parts(listed, key).path  # a host can be [::1]
        if any(sign in path for sign in "*[") or listed != address:
            matches = server.find(listed)
            if not matches:
                raise UserError(f"no file matches {without_query(listed)}", where=key, remedy="check the pattern")
            found += matches
        else:
            found.append(address)
    return [RemoteShard(address, server) for address in found]


def _parts(address: str, key: str) -> SplitResult:
    """Returns the parts of a URL without the query after "?"."""
    shown = without_query(address)
    try:
        parts = urlsplit(shown)
        _ = parts.port if "{" not in parts.netloc else None
    except ValueError as error:
        raise UserError(f"{shown.rpartition('@')[2]}: {error}", where=key, remedy="check the URL") from None
    return parts


def _expanded(entry: str) -> Iterator[str]:
    """Yields the entry for each number in its ranges. Numbers are padded to as many digits as the first number has."""
    match = _RANGE.search(entry)
    if match is None:
        yield entry
        return
    first, last = match.groups()
    for number in range(int(first), int(last) + 1):
        for rest in _expanded(entry[match.end() :]):
            yield f"{entry[: match.start()]}{number:0{len(first)}d}{rest}"
