"""The index that lies in a folder of shards: whoever made the shards knows where their records begin."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dataset.shards.finding import ShardFile
from dataset.shards.index import BYTES, CHANGED, ODDITIES, RECORDS, WHOLE
from dataset.shards.scanning import ScannedShard

INDEX = "_prepare/index"
"""Path of the index in a folder of shards. Beside the files of every index, it has their names, sorted."""

NAMES = "names.npy"


def write_names(index: Path, names: list[str]) -> None:
    """Write the names of the shards of an index, in its order."""
    np.save(index / NAMES, np.array([name.encode() for name in names]))


def scanned_before(path: ShardFile, size: int, changed: int) -> ScannedShard | None:
    """What the index in the folder of a shard says; None: there is none, or the shard has changed since.

    Args:
        path: the shard.
        size: its bytes now.
        changed: time of its last change, in ns.
    """
    folder = path.parent / INDEX
    if not isinstance(path, Path) or not folder.is_dir():
        return None
    try:
        names, shards, starts, oddities = (
            np.load(folder / file, mmap_mode="r", allow_pickle=False)
            for file in (NAMES, "shards.npy", "starts.npy", "oddities.npy")
        )
        name = path.name.encode()
        row = int(np.searchsorted(names, name))
        if len(names) != len(shards) or names[row] != name:
            return None
        found = shards[row]
        if (found[BYTES], found[CHANGED]) != (size, changed):
            return None
        before = shards[:row, [RECORDS, ODDITIES]].sum(axis=0)
    except (OSError, ValueError, EOFError, IndexError):
        return None
    return ScannedShard(
        np.array(starts[before[0] : before[0] + found[RECORDS]]),
        np.array(oddities[before[1] : before[1] + found[ODDITIES]]),
        bool(found[WHOLE]),
    )
