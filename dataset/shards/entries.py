"""The stored index of each shard. It is named after the shard's path, and is used while the shard has the same size and version.

Finding the records of a shard means reading all of it (:mod:`dataset.shards.scanning`), so this is done once: the result is
stored as an *entry*, which all lists with this shard share (:mod:`dataset.shards.making`). Entries are in the folder of all
indexes, and, for shards that ``prepare`` has written, also in a folder next to the shards, which may be moved together with them.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np

from dataset.shards.index import COLUMNS, IRREGULARITIES, RECORDS
from dataset.shards.scanning import ScannedShard

STORE = "shards"
"""Folder of the entries, in the folder of all indexes."""
NEXT_TO_SHARDS = Path("_prepare", "index")
"""Folder of the entries of the shards in a folder, below that folder. These entries are named after the shards."""

_FORMAT = 1
"""First number in each entry. It changes when the layout of entries changes."""

State = tuple[int, int]
"""Size of a shard in bytes, and its modification time (local) or version (remote)."""


def entry_file(store: Path, real_path: str) -> Path:
    """Returns the file of a shard's entry.

    Args:
        store: folder of the entries.
        real_path: path of the shard with symbolic links resolved, or its URL.
    """
    name = hashlib.sha256(real_path.encode("utf-8", "surrogateescape")).hexdigest()[:32]
    return store / name[:2] / name[2:]


def row_of(state: State, scanned: ScannedShard) -> np.ndarray:
    """Returns the row (6,) int64 of a shard in an index (see :class:`~dataset.shards.index.ShardsIndex`)."""
    counts = (len(scanned.starts), len(scanned.irregularities), int(scanned.complete), scanned.links)
    return np.array([*state, *counts], np.int64)


def write_entry(file: Path, state: State, scanned: ScannedShard) -> None:
    """Writes the entry of a shard atomically: its format and its row (see :class:`~dataset.shards.index.ShardsIndex`), then the
    offset of each record, and the irregularities, all as 64-bit integers."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f"{file.name}.{os.getpid()}.tmp")
    np.concatenate([[_FORMAT], row_of(state, scanned), scanned.starts, scanned.irregularities.ravel()]).astype(
        "<i8"
    ).tofile(temporary)
    os.replace(temporary, file)


def read_row(file: Path) -> np.ndarray | None:
    """Reads the row (6,) int64 of an entry without the offsets of the records; returns None if the entry is missing, damaged, or
    from another version."""
    try:
        start, size = np.fromfile(file, "<i8", count=1 + COLUMNS), file.stat().st_size
    except OSError:
        return None
    if len(start) <= COLUMNS or start[0] != _FORMAT:
        return None
    row = start[1:].astype(np.int64)
    return row if size == 8 * (1 + COLUMNS + row[RECORDS] + 2 * row[IRREGULARITIES]) else None


def read_offsets(file: Path, row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Reads the offset of each record of an entry, (n,) int64, and the irregularities, (m, 2) int64.

    Args:
        file: file of the entry.
        row: (6,) int64, the row of the entry.

    Raises:
        OSError: if the entry has changed since its row was read.
    """
    numbers = np.fromfile(file, "<i8", offset=8 * (1 + COLUMNS)).astype(np.int64)
    if len(numbers) != row[RECORDS] + 2 * row[IRREGULARITIES]:
        raise OSError(f"{file} has changed")
    return numbers[: row[RECORDS]], numbers[row[RECORDS] :].reshape(-1, 2)
