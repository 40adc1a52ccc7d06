"""Reads shards as one long list of records with random access.

:mod:`dataset.shards.scanning` describes the formats of shards, and :mod:`dataset.shards.index` stores the offsets of their
records.
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

import numpy as np

from dataset.config import RemoteConfig
from dataset.files import RECORD_BYTES, check_bytes
from dataset.records.schema import RawRecord, parse_object
from dataset.shards.finding import PARQUET_SUFFIX, TAR_SUFFIX, ShardFile, find_by_entry, open_shard
from dataset.shards.index import default_index_folder
from dataset.shards.making import open_index
from dataset.shards.parquet import ParquetRows, check_pyarrow, runs_of_groups
from dataset.shards.remote.shards import RemoteShard
from dataset.shards.tars import location_of, read_record
from utils import distributed, open_files
from utils.errors import UserError
from utils.files import expanded

_OPEN_FILES = 48
_SHARE_OF_LIMIT = 16
"""A list of shards keeps open at most 1/16 of the files that the process may open, because a run reads several lists."""

logger = logging.getLogger(__name__)


class Shards:
    """All records of a list of shard files, numbered from 0 in the order of the files.

    It can be used after a fork, because every process opens its own files, and pickled, because the index is mapped again from
    its file.

    Args:
        files: entries as for :func:`~dataset.shards.finding.find_by_entry`.
        key: config key of ``files``, to name in error messages.
        index_folder: folder that contains all indexes; if None, :func:`~dataset.shards.index.default_index_folder`.
        remote: settings for remote shards; if None, the defaults.
        workers: number of processes that build a missing index.
        ask_servers: whether to ask servers if remote shards have changed since they were indexed.
        in_order: True if each process reads the records in order. The rows of Parquet shards are then not cached
            (:class:`~dataset.shards.parquet.ParquetRows`).

    Attributes:
        prefetches: True if :meth:`prefetch` has any effect.
        remote: settings for remote shards.
        cached_bytes: bytes that an epoch reads through the cache: total size of the remote shards, and of the decoded rows of the
            Parquet shards.

    Raises:
        UserError: for the reasons listed in :func:`~dataset.shards.finding.find_by_entry`, if a shard cannot be read, or if all
            shards are empty.
    """

    def __init__(
        self,
        files: Sequence[str],
        *,
        key: str = "files",
        index_folder: str | Path | None = None,
        remote: RemoteConfig | None = None,
        workers: int = 1,
        ask_servers: bool = False,
        in_order: bool = False,
    ):
        self.key, self.remote = key, remote or RemoteConfig()
        by_entry = find_by_entry(files, key, remote)
        self.paths = [path for paths in by_entry for path in paths]
        self._shards_by_entry = [len(paths) for paths in by_entry]
        folder = expanded(index_folder) if index_folder is not None else default_index_folder()
        has_parquet = any(path.suffix == PARQUET_SUFFIX for path in self.paths)
        if has_parquet:
            check_pyarrow(key)
        self.index = open_index(self.paths, folder, key, workers, ask_servers)
        self.sizes = self.index.sizes
        for fault in self.index.faults() if distributed.rank() == 0 else ():
            logger.warning("%s: %s", key, fault)
        self._process, self._files = os.getpid(), OrderedDict[int, BinaryIO]()
        """The most recently used open files of this process."""
        self._rows = ParquetRows(self.remote, in_order) if has_parquet else None
        self.prefetches = any(isinstance(path, RemoteShard) and path.prefetches for path in self.paths)
        self.cached_bytes = sum(map(self._cached_bytes, range(len(self.paths))))
        if not len(self):
            raise UserError(f"{', '.join(files)} contains no records", where=key, remedy="every shard is empty")

    def __len__(self) -> int:
        return self.index.ends[-1]

    @property
    def first_records(self) -> list[int]:
        """The number of the first record of each non-empty shard."""
        return [end - size for size, end in zip(self.sizes, self.index.ends, strict=True) if size]

    def runs_by_entry(self, block_records: int) -> list[list[int]]:
        """Returns the sizes of the runs of records in each entry of ``files``. A run is a whole shard, or neighbouring row groups
        of a Parquet shard that fit into a block together. A block should not contain records of two runs."""
        runs = (
            runs_of_groups(self.index.row_groups(shard)[:, 0], size, block_records)
            if path.suffix == PARQUET_SUFFIX
            else [size]
            for shard, (path, size) in enumerate(zip(self.paths, self.sizes, strict=True))
        )
        return [list(itertools.chain(*itertools.islice(runs, count))) for count in self._shards_by_entry]

    def large_row_group(self, limit: int) -> tuple[ShardFile, int, int] | None:
        """Returns the first Parquet shard with a row group of several rows and more than ``limit`` decompressed bytes, and the
        size and number of rows of that row group, or None if every row group is smaller."""
        for shard, path in enumerate(self.paths):
            if path.suffix == PARQUET_SUFFIX:
                first, size, _, _ = self.index.row_groups(shard).T
                rows = np.diff(first, append=self.sizes[shard])
                large = np.flatnonzero((size > limit) & (rows > 1))
                if len(large):
                    return path, int(size[large[0]]), int(rows[large[0]])
        return None

    def location(self, number: int) -> str:
        """Returns the location of record ``number`` without reading the shard: file and line, tar and index in the tar, or
        Parquet file and row."""
        shard, row = self._locate(number)
        path = self.paths[shard]
        if path.suffix == PARQUET_SUFFIX:
            return ParquetRows.location(path, row)
        return f"{path}: record {row}" if path.suffix == TAR_SUFFIX else f"{path}:{self.index.line(shard, row)}"

    def exact_location(self, number: int) -> str:
        """Returns the location that record ``number`` has when it is read, with the name of its member in a tar.

        If the tar cannot be read, the location contains the record's index in the tar instead.
        """
        shard, row = self._locate(number)
        path = self.paths[shard]
        if path.suffix != TAR_SUFFIX:
            return self.location(number)
        try:
            return location_of(self._open(shard), path, self.index.span(shard, row), self.index.detached(shard, row))
        except (OSError, tarfile.TarError, ValueError):
            return f"{path}: record {row}"

    def _cached_bytes(self, shard: int) -> int:
        path = self.paths[shard]
        decoded = int(self.index.row_groups(shard)[:, 1].sum()) if path.suffix == PARQUET_SUFFIX else 0
        return decoded + (self.index.state(shard)[0] if isinstance(path, RemoteShard) else 0)

    def _locate(self, number: int) -> tuple[int, int]:
        """Returns the shard of a record, and the index of the record in the shard."""
        if not 0 <= number < len(self):
            raise IndexError(f"record {number} is not in 0 … {len(self) - 1}")
        shard = bisect.bisect_right(self.index.ends, number)
        return shard, number - (self.index.ends[shard] - self.sizes[shard])

    def _open(self, shard: int) -> BinaryIO:
        """Returns the open file of a shard."""
        if self._process != os.getpid():
            # Files opened before a fork share their position with the parent process, so they must not be used.
            self._process, self._files = os.getpid(), OrderedDict()
        file = self._files.get(shard)
        if file is None:
            file = self._files[shard] = open_shard(self.paths[shard], self.index.state(shard))
            if len(self._files) > max(1, min(_OPEN_FILES, open_files.limit() // _SHARE_OF_LIMIT)):
                self._files.popitem(last=False)[1].close()
        self._files.move_to_end(shard)
        return file

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_process": -1, "_files": OrderedDict()}

    def prefetch(self, number: int) -> None:
        """Prefetches record ``number`` if its shard is remote and the config enables prefetching."""
        shard, row = self._locate(number)
        path = self.paths[shard]
        if not isinstance(path, RemoteShard) or not path.prefetches:
            return
        if path.suffix == PARQUET_SUFFIX and self._rows is not None:
            self._rows.prefetch(path, self.index.state(shard), self.index.row_group(shard, row), row)
        else:
            path.prefetch(self.index.state(shard), *self.index.span(shard, row))

    def read(self, number: int) -> RawRecord:
        """Reads record ``number``. Its ``location`` is ``file:line``, ``shard.tar:member`` or ``file.parquet:row number``.

        Raises:
            BrokenRecordError: "bad json", "wrong type", "repeated member" or "unreadable row group"; "unreadable image",
                "unreadable text" or "unreadable json" if a member or a line exceeds its size limit.
            UserError: if the shard itself can no longer be read.
        """
        shard, row = self._locate(number)
        path = self.paths[shard]
        try:
            if path.suffix == PARQUET_SUFFIX and self._rows is not None:
                return self._rows.read(path, self.index.state(shard), self.index.row_group(shard, row), row)
            span = self.index.span(shard, row)
            file = self._open(shard)
            if path.suffix == TAR_SUFFIX:
                return read_record(file, path, span, self.index.detached(shard, row))
            return _read_line(file, path, (span[0], span[1] - span[0]), self.index.line(shard, row))
        except (OSError, tarfile.TarError) as error:
            if (failure := open_files.limit_error(error)) is not None:
                raise failure from None
            raise UserError(
                f"can no longer be read ({error})",
                where=path,
                remedy="check whether it was moved or changed during the run",
            ) from None


def _read_line(file: BinaryIO, path: ShardFile, span: tuple[int, int], line: int) -> RawRecord:
    file.seek(span[0])
    location = f"{path}:{line}"
    check_bytes(span[1], RECORD_BYTES, "the line", "json")
    return RawRecord(parse_object(file.read(span[1])), location, path.parent)
