"""The state of each shard, which shows whether an index is up to date."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from dataset.shards.finding import ShardFile
from dataset.shards.remote.shards import RemoteShard
from utils.errors import UserError

_CONCURRENT_REQUESTS = 16


def states_of(paths: Sequence[ShardFile], key: str, indexed: np.ndarray | None = None) -> np.ndarray:
    """Returns the states of shards as (S, 2) int64: size in bytes, and modification time (local) or version (remote).

    Args:
        paths: S shards.
        key: config key of the shards, to name in error messages.
        indexed: (S, 2) int64, states that are assumed for remote shards. This saves every rank a request per shard, and reading a
            shard verifies its state anyway. If None, the servers are asked.

    Raises:
        UserError: if a shard cannot be read.
    """
    states = np.empty((len(paths), 2), np.int64)
    for number, path in enumerate(paths):
        if isinstance(path, RemoteShard):
            continue
        try:
            status = os.stat(path)
        except OSError as error:
            raise UserError(
                f"{path}: {error.strerror or error}", where=key, remedy="check the file and its permissions"
            ) from None
        states[number] = status.st_size, status.st_mtime_ns
    remote = {number: path for number, path in enumerate(paths) if isinstance(path, RemoteShard)}
    if remote and indexed is not None:
        states[list(remote)] = indexed[list(remote)]
    elif remote:
        with ThreadPoolExecutor(_CONCURRENT_REQUESTS) as pool:
            states[list(remote)] = list(pool.map(RemoteShard.state, remote.values()))
    return states
