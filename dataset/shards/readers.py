"""Shards on disk as one long list of records: any record by its number, without reading what lies before it.

What a shard is says :mod:`dataset.shards.scanning`; where its records lie, :mod:`dataset.shards.index`.
"""

from __future__ import annotations

import bisect
import itertools
import logging
import os
import tarfile
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

from dataset.files import RECORD_BYTES, check_bytes
from dataset.records.schema import RawRecord
from dataset.shards.finding import TAR_SUFFIX, ShardFile, find_by_entry, open_shard
from dataset.shards.index import default_index_folder
from dataset.shards.making import open_index
from dataset.shards.remote.server import RemoteConfig
from dataset.shards.remote.shards import RemoteShard
from dataset.shards.tars import location_of, parse_object, read_record
from utils import distributed, open_files
from utils.errors import UserError
from utils.files import expanded

_OPEN_FILES = 48
_SHARE_OF_LIMIT = 16
"""A list of shards keeps at most a sixteenth of the files open that the process may open; a run reads several lists."""

logger = logging.getLogger(__name__)


class Shards:
    """All records of a list of shard files, numbered from 0 in the order of the files.

    Safe after a fork (every process opens its own files) and to pickle (indexes are mapped again from their cache).

    Args:
        files: entries as for :func:`~dataset.shards.finding.find_by_entry`.
        key: config key of ``files``, for messages.
        index_folder: of indexes; None: :func:`~dataset.shards.index.default_index_folder`.
        remote: how shards at addresses are read; None: as by default.
        workers: processes that make an index where there is none.
        ask: ask servers whether remote shards have changed since they were indexed.

    Attributes:
        fetches_ahead: whether :meth:`expect` has an effect.
        remote: how shards at addresses are read.
        remote_bytes: of all shards at addresses.

    Raises:
        UserError: as :func:`~dataset.shards.finding.find_by_entry`, and for zero records or an unreadable shard.
    """

    def __init__(
        self,
        files: Sequence[str],
        *,
        key: str = "files",
        index_folder: str | Path | None = None,
        remote: RemoteConfig | None = None,
        workers: int = 1,
        ask: bool = False,
    ):
        self.key, self.remote = key, remote or RemoteConfig()
        by_entry = find_by_entry(files, key, remote)
        self.paths = [path for paths in by_entry for path in paths]
        self._shards_by_entry = [len(paths) for paths in by_entry]
        folder = expanded(index_folder) if index_folder is not None else default_index_folder()
        self.index = open_index(self.paths, folder, key, workers, ask)
        self.sizes = self.index.sizes
        for shard in self.index.not_whole() if distributed.rank() == 0 else []:
            found = f"{self.sizes[shard]} records were found: is it whole?"
            logger.warning("%s: %s lacks the end of a tar; %s", key, self.paths[shard], found)
        self._files = _OpenFiles()
        self.fetches_ahead = any(isinstance(path, RemoteShard) and path.fetches_ahead for path in self.paths)
        self.remote_bytes = sum(
            self.index.state(shard)[0] for shard, path in enumerate(self.paths) if isinstance(path, RemoteShard)
        )
        if not len(self):
            raise UserError(f"{key}: {', '.join(files)} holds no records; every shard is empty")

    def __len__(self) -> int:
        return self.index.ends[-1]

    @property
    def starts(self) -> list[int]:
        """The number of the first record of each shard that has any."""
        return [end - size for size, end in zip(self.sizes, self.index.ends, strict=True) if size]

    @property
    def sizes_by_entry(self) -> list[list[int]]:
        """The number of records of each shard, for each entry of ``files``."""
        sizes = iter(self.sizes)
        return [list(itertools.islice(sizes, count)) for count in self._shards_by_entry]

    def location(self, number: int) -> str:
        """Where record ``number`` is, without reading the shard: its file and line, or its tar and its index in the tar."""
        shard, row = self._locate(number)
        path = self.paths[shard]
        return f"{path}: record {row}" if path.suffix == TAR_SUFFIX else f"{path}:{self.index.line(shard, row)}"

    def exact_location(self, number: int) -> str:
        """Where record ``number`` lies, for messages: as in the record, or for a tar that cannot be read its number there."""
        shard, row = self._locate(number)
        path = self.paths[shard]
        if path.suffix != TAR_SUFFIX:
            return f"{path}:{self.index.line(shard, row)}"
        try:
            return location_of(self._open(shard), path, self.index.span(shard, row), self.index.apart(shard, row))
        except (OSError, tarfile.TarError, ValueError):
            return f"{path}: record {row}"

    def _locate(self, number: int) -> tuple[int, int]:
        """The shard of a record, and the record's number in it."""
        if not 0 <= number < len(self):
            raise IndexError(f"record {number} is not in 0 … {len(self) - 1}")
        shard = bisect.bisect_right(self.index.ends, number)
        return shard, number - (self.index.ends[shard] - self.sizes[shard])

    def _open(self, shard: int) -> BinaryIO:
        return self._files.get(shard) or self._files.open(shard, self.paths[shard], self.index.state(shard))

    def expect(self, number: int) -> None:
        """Say that record ``number`` will be read; one of a remote shard is fetched before, if the config says so."""
        shard, row = self._locate(number)
        path = self.paths[shard]
        if isinstance(path, RemoteShard) and path.fetches_ahead:
            path.expect(self.index.state(shard), *self.index.span(shard, row))

    def read(self, number: int) -> RawRecord:
        """Record ``number``, with ``location`` as ``file:line`` or ``shard.tar:member``.

        Raises:
            BrokenRecordError: "bad json" or "wrong type".
            UserError: where the shard itself can no longer be read.
        """
        shard, row = self._locate(number)
        path, span = self.paths[shard], self.index.span(shard, row)
        try:
            file = self._open(shard)
            if path.suffix == TAR_SUFFIX:
                return read_record(file, path, span, self.index.apart(shard, row))
            return _read_line(file, path, (span[0], span[1] - span[0]), self.index.line(shard, row))
        except (OSError, tarfile.TarError) as error:
            if (told := open_files.too_many(error)) is not None:
                raise told from None
            raise UserError(
                f"{path}: cannot be read any more ({error}); was it moved or changed during the run?"
            ) from None


class _OpenFiles:
    """The most recently used files of this process; another process, forked or spawned, starts with none."""

    def __init__(self) -> None:
        self._process = os.getpid()
        self._files: OrderedDict[int, BinaryIO] = OrderedDict()

    def get(self, shard: int) -> BinaryIO | None:
        """The file of a shard, if it is open."""
        if self._process != os.getpid():
            # Positions of files opened before a fork are shared with the parent: never use them.
            self.__init__()  # type: ignore[misc]
        file = self._files.get(shard)
        if file is not None:
            self._files.move_to_end(shard)
        return file

    def open(self, shard: int, path: ShardFile, state: tuple[int, int]) -> BinaryIO:
        """Open the file of a shard that had a ``state`` when it was indexed."""
        file = self._files[shard] = open_shard(path, state)
        if len(self._files) > max(1, min(_OPEN_FILES, open_files.limit() // _SHARE_OF_LIMIT)):
            self._files.popitem(last=False)[1].close()
        return file

    def __getstate__(self) -> dict[str, Any]:
        return {"_process": -1, "_files": OrderedDict()}


def _read_line(file: BinaryIO, path: ShardFile, span: tuple[int, int], line: int) -> RawRecord:
    file.seek(span[0])
    location = f"{path}:{line}"
    check_bytes(span[1], RECORD_BYTES, location, "the line", "json")
    return RawRecord(parse_object(file.read(span[1]), location), location, path.parent)
