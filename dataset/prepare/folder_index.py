"""Builds the index of the shards in a prepared folder, so that runs do not have to scan the shards for their records."""

from __future__ import annotations

from pathlib import Path

from dataset.shards.finding import find_shards
from dataset.shards.known import INDEX, NAMES
from dataset.shards.making import make_index
from dataset.shards.states import states_of


def write_folder_index(folder: Path, workers: int) -> None:
    """Builds the index of the shards in ``folder`` with several processes, unless it already exists.

    Raises:
        UserError: a shard cannot be read.
    """
    if (folder / INDEX / NAMES).is_file():
        return
    (folder / INDEX).parent.mkdir(exist_ok=True)
    key = str(folder)
    paths = find_shards([key], key)
    make_index(folder / INDEX, paths, states_of(paths, key), key, workers, [path.name for path in paths])
