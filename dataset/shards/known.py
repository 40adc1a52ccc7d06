"""Finds shards that another index already contains, so that they do not have to be scanned again. The other index is in the
folder of the shards, or is the index of another list of shards.

Every index stores the sorted names of its shards in ``names.npy``. If the shards of the index are in a different order,
``rows.npy`` contains the row of each name.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dataset.shards.finding import ShardFile
from dataset.shards.index import COMPLETE, IRREGULARITIES, LINKS, MODIFIED, RECORDS, load_arrays
from dataset.shards.scanning import ScannedShard

INDEX = "_prepare/index"
"""Path of the index in a folder of shards. This index stores the names of its shards without the folder, so the folder may be
moved."""

NAMES, _ROWS = "names.npy", "rows.npy"
_MAX_COMPARED = 8
"""Maximum number of existing indexes that are compared with a new list. The most recently written ones are used."""


@dataclass(frozen=True)
class Known:
    """The shards of a list that an existing index already contains, unchanged.

    Attributes:
        index: folder of the index.
        rows: (S,) int64, row of each shard in the index, or -1 if the index does not contain it.
    """

    index: Path
    rows: np.ndarray

    def part(self, shards: slice) -> Known:
        """Returns the known shards in a slice of the list."""
        return Known(self.index, self.rows[shards])

    def scanned(self, states: np.ndarray) -> Iterator[tuple[int, ScannedShard]]:
        """Yields the position in the list and the records of each known shard. Shards whose rows have changed in the index are
        skipped.

        Args:
            states: (S, 2) int64, current states of the shards.
        """
        arrays = load_arrays(self.index)
        if arrays is None:
            return
        shards, starts, irregularities = arrays
        ends = np.cumsum(shards[:, [RECORDS, IRREGULARITIES]], axis=0)
        for number in np.flatnonzero(_unchanged_rows(self.rows, shards, states) >= 0).tolist():
            found = shards[self.rows[number]]
            end, odd_end = ends[self.rows[number]].tolist()
            yield (
                number,
                ScannedShard(
                    np.array(starts[end - found[RECORDS] : end]),
                    np.array(irregularities[odd_end - found[IRREGULARITIES] : odd_end]),
                    bool(found[COMPLETE]),
                    int(found[LINKS]),
                ),
            )


def write_names(index: Path, names: Sequence[str]) -> None:
    """Writes the names of the shards of an index. ``names`` is in the order of the index."""
    encoded = np.array([os.fsencode(name) for name in names])
    order = np.argsort(encoded, kind="stable")
    if not np.array_equal(order, np.arange(len(order))):
        np.save(index / _ROWS, order)
    np.save(index / NAMES, encoded[order])


def known_in_folders(paths: Sequence[ShardFile], states: np.ndarray) -> list[Known]:
    """Returns the shards that are listed in the index of their folder."""
    by_folder: dict[Path, list[int]] = {}
    for number, path in enumerate(paths):
        if isinstance(path, Path):
            by_folder.setdefault(path.parent, []).append(number)
    known = []
    for folder, numbers in by_folder.items():
        rows = np.full(len(paths), -1)
        if (folder / INDEX).is_dir():
            rows[numbers] = _rows_of(folder / INDEX, [paths[number].name for number in numbers])
        known.append(_known(folder / INDEX, rows, states))
    return [one for one in known if (one.rows >= 0).any()]


def known_before(index: Path, states: np.ndarray) -> Known:
    """Returns the shards that have not changed since an older index of the same list was built."""
    return _known(index, np.arange(len(states)), states)


def known_in_nearest(folder: Path, names: Sequence[str], states: np.ndarray) -> Known | None:
    """Returns the shards that are in the index of another list. If there are several, the index with the most shared shards
    is used.

    Args:
        folder: folder of all indexes.
        names: real paths of the S shards.
        states: (S, 2) int64, current states of the shards.

    Returns:
        None if no index shares a shard with the list.
    """
    newest = sorted(folder.glob("*.index"), key=_written, reverse=True)[:_MAX_COMPARED]
    found = [(index, _rows_of(index, names)) for index in newest]
    index, rows = max(found, key=lambda one: int((one[1] >= 0).sum()), default=(folder, np.full(len(names), -1)))
    return _known(index, rows, states) if (rows >= 0).any() else None


def _known(index: Path, rows: np.ndarray, states: np.ndarray) -> Known:
    arrays = load_arrays(index) if (rows >= 0).any() else None
    return Known(index, np.full(len(rows), -1) if arrays is None else _unchanged_rows(rows, arrays[0], states))


def _unchanged_rows(rows: np.ndarray, shards: np.ndarray, states: np.ndarray) -> np.ndarray:
    """Returns ``rows``, with -1 for each shard whose state in the index differs from its state in ``states``."""
    is_listed = (rows >= 0) & (rows < len(shards))
    same = (shards[np.where(is_listed, rows, 0), : MODIFIED + 1] == states).all(axis=1) if len(shards) else is_listed
    return np.where(is_listed & same, rows, -1)


def _rows_of(index: Path, names: Sequence[str]) -> np.ndarray:
    """Returns (S,) int64: the row of each name in an index, or -1 if it is missing. An older index may have no names."""
    wanted = np.array([os.fsencode(name) for name in names])
    try:
        known = np.load(index / NAMES, mmap_mode="r", allow_pickle=False)
        rows = np.load(index / _ROWS, allow_pickle=False) if (index / _ROWS).exists() else np.arange(len(known))
        indices = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
        return np.where(known[indices] == wanted, rows[indices], -1)
    except (OSError, ValueError, EOFError, IndexError):
        return np.full(len(names), -1)


def _written(index: Path) -> float:
    try:
        return index.stat().st_mtime
    except OSError:  # another process is rebuilding the index
        return 0.0
