"""The index of a list of shards. It stores the offset of each record, 8 bytes per record, in one folder.

The folder ``<hash of the paths>.index`` contains

- ``shards.npy``: a row for each shard with its size in bytes, modification time or version, number of records, number of
  irregularities, whether it is complete, and its number of links,
- ``starts.npy``: the offset of each record, memory-mapped so that processes share one copy,
- ``irregularities.npy``: deviations from records stored one after another. :class:`~dataset.shards.scanning.ScannedShard`
  describes these deviations, and what is stored for Parquet.

:mod:`dataset.shards.making` assembles the index.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dataset.shards.finding import ShardFile, real_paths
from dataset.shards.tars import detached_members
from utils.errors import UserError
from utils.files import cache_folder, check_regular
from utils.printing import counted

BYTES, MODIFIED, RECORDS, IRREGULARITIES, COMPLETE, LINKS = range(6)
"""Columns of ``shards.npy``."""
COLUMNS = 6


class RowGroup(NamedTuple):
    """A row group of a Parquet shard.

    Attributes:
        number: index of the row group in the file.
        first: index of the row group's first row in the file.
        rows: number of rows.
        bytes: size of the decompressed pages, in bytes.
        start: offset of the row group's first page in the file.
        end: offset of the end of the row group's last page.
    """

    number: int
    first: int
    rows: int
    bytes: int
    start: int
    end: int


class ShardsIndex:
    """The offset of each record of a list of shards.

    Args:
        paths: the S shards.
        shards: (S, 6) int64, content of ``shards.npy``.
        starts: (N,) int64, offsets of the N records, shard by shard.
        irregularities: (M, 2) int64, shard by shard.
        folder: folder of the index; None if the index exists only in memory.
    """

    def __init__(
        self,
        paths: Sequence[ShardFile],
        shards: np.ndarray,
        starts: np.ndarray,
        irregularities: np.ndarray,
        folder: Path | None,
    ):
        self.paths, self.shards, self.irregularities, self.folder = paths, shards, irregularities, folder
        self._starts: np.ndarray | None = starts
        self.sizes: list[int] = shards[:, RECORDS].tolist()
        """The number of records of each shard."""
        self.ends: list[int] = np.cumsum(shards[:, RECORDS]).tolist()
        self._irregularity_ends = np.cumsum(shards[:, IRREGULARITIES])

    @property
    def starts(self) -> np.ndarray:
        """The offsets of all records. After unpickling, their file is mapped again."""
        if self._starts is None:
            assert self.folder is not None
            reloaded = load(self.folder, self.paths)
            if reloaded is None or not np.array_equal(reloaded.shards, self.shards):
                raise UserError(f"the index {self.folder} was removed or rebuilt", remedy="start the run again")
            self._starts = reloaded.starts
        return self._starts

    def state(self, shard: int) -> tuple[int, int]:
        """Returns the size of a shard in bytes, and its modification time (local) or version (remote)."""
        return int(self.shards[shard, BYTES]), int(self.shards[shard, MODIFIED])

    def span(self, shard: int, row: int) -> tuple[int, int]:
        """Returns the offsets of record ``row`` of a shard and of the next record."""
        first = self.ends[shard] - int(self.shards[shard, RECORDS])
        start = int(self.starts[first + row])
        last = first + row + 1 == self.ends[shard]
        return start, int(self.shards[shard, BYTES]) if last else int(self.starts[first + row + 1])

    def detached(self, shard: int, row: int) -> list[int]:
        """Returns the offsets of the members of record ``row`` that do not directly follow the record's first members."""
        return detached_members(self._irregularities_of(shard), row) if len(self.irregularities) else []

    def line(self, shard: int, row: int) -> int:
        """Returns the line, counted from 1, of record ``row`` in a shard of JSON lines."""
        if not len(self.irregularities):
            return row + 1
        return row + 1 + int(np.searchsorted(self._irregularities_of(shard)[:, 0], row, side="right"))

    def row_groups(self, shard: int) -> np.ndarray:
        """Returns (G, 4) int64 for a Parquet shard: first row, decompressed size, start and end of each row group."""
        return np.concatenate(np.split(self._irregularities_of(shard), 2), axis=1)

    def row_group(self, shard: int, row: int) -> RowGroup:
        """Returns the row group of a row of a Parquet shard."""
        first, records = self.ends[shard] - int(self.shards[shard, RECORDS]), int(self.shards[shard, RECORDS])
        number, odd = int(self.starts[first + row]), self._irregularities_of(shard)
        groups = len(odd) // 2
        own_first, size = odd[number].tolist()
        end = int(odd[number + 1, 0]) if number + 1 < groups else records
        return RowGroup(number, own_first, end - own_first, size, *odd[groups + number].tolist())

    def faults(self) -> list[str]:
        """Describes the tars that have no end blocks or contain links."""
        faults = []
        for shard in np.flatnonzero(self.shards[:, COMPLETE] == 0).tolist():
            found = f"{self.sizes[shard]} records were found; check that the file is complete"
            faults.append(f"{self.paths[shard]} has no end-of-archive marker; {found}")
        for shard in np.flatnonzero(self.shards[:, LINKS]).tolist():
            links = int(self.shards[shard, LINKS])
            faults.append(
                f"{self.paths[shard]} contains {counted(links, 'link, which has', 'links, which have')} no content and "
                f"{'is' if links == 1 else 'are'} skipped; write it again with tar --dereference --hard-dereference"
            )
        return faults

    def _irregularities_of(self, shard: int) -> np.ndarray:
        end = int(self._irregularity_ends[shard])
        return self.irregularities[end - int(self.shards[shard, IRREGULARITIES]) : end]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_starts": None if self.folder is not None else self._starts}


def load(folder: Path, paths: Sequence[ShardFile]) -> ShardsIndex | None:
    """Loads the index in a folder, with the offsets memory-mapped; returns None if it is missing, damaged, or from an earlier
    version."""
    try:
        for name in ("shards.npy", "irregularities.npy", "starts.npy"):
            check_regular(folder / name)
        shards = np.load(folder / "shards.npy", allow_pickle=False)
        irregularities = np.load(folder / "irregularities.npy", allow_pickle=False)
        starts: np.ndarray = np.empty(0, np.int64)  # an empty array cannot be mapped
        if int(shards[:, RECORDS].sum()):
            starts = np.load(folder / "starts.npy", mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError, IndexError):
        return None
    is_valid = (
        all(array.dtype == np.int64 for array in (shards, starts, irregularities))
        and shards.shape == (len(paths), COLUMNS)
        and starts.shape == (shards[:, RECORDS].sum(),)
        and irregularities.shape == (shards[:, IRREGULARITIES].sum(), 2)
    )
    return ShardsIndex(paths, shards, starts, irregularities, folder) if is_valid else None


def write_index(folder: Path, shards: np.ndarray, offsets: Iterable[tuple[np.ndarray, np.ndarray]]) -> None:
    """Writes the files of an index.

    Args:
        folder: folder of the index.
        shards: (S, 6) int64, content of ``shards.npy``.
        offsets: for each shard, the offsets of its records and the irregularities.
    """
    records, at, irregularities = int(shards[:, RECORDS].sum()), 0, []
    starts = np.lib.format.open_memmap(folder / "starts.npy", "w+", np.dtype(np.int64), (max(1, records),))
    for own_starts, own_irregularities in offsets:
        starts[at : at + len(own_starts)] = own_starts
        at += len(own_starts)
        irregularities.append(own_irregularities)
    starts.flush()
    np.save(folder / "irregularities.npy", np.concatenate(irregularities))
    np.save(folder / "shards.npy", shards)


def name_of(paths: Sequence[ShardFile]) -> str:
    """Returns the name of the index of some shards, a hash of their paths with symbolic links resolved."""
    return hashlib.sha256("\n".join(real_paths(paths)).encode()).hexdigest()[:32]


def default_index_folder() -> Path | None:
    """Returns the default folder for indexes, in the user's cache folder, or None if the user has no cache folder."""
    caches = cache_folder()
    return caches / "index" if caches is not None else None
