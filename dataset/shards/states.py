"""The state of each shard: by it an index knows whether it is of the shards as they are now."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from dataset.shards.finding import ShardFile
from dataset.shards.remote.shards import RemoteShard
from utils.errors import UserError

_ASKED_AT_ONCE = 16


def states_of(paths: Sequence[ShardFile], key: str, indexed: np.ndarray | None = None) -> np.ndarray:
    """(S, 2) int64: the bytes of each shard, and the time of its last change or, of a remote one, its version.

    Args:
        paths: S shards.
        key: config key of the shards, for messages.
        indexed: (S, 2) int64, states that are taken for remote shards. Every rank of a run would have to ask for all of them, and
            reading checks them anyway. None: servers are asked.

    Raises:
        UserError: a shard cannot be read.
    """
    states = np.empty((len(paths), 2), np.int64)
    for number, path in enumerate(paths):
        if isinstance(path, RemoteShard):
            continue
        try:
            status = os.stat(path)
        except OSError as error:
            raise UserError(f"{key}: {path}: {error.strerror or error}; check the file and its permissions") from None
        states[number] = status.st_size, status.st_mtime_ns
    remote = {number: path for number, path in enumerate(paths) if isinstance(path, RemoteShard)}
    if remote and indexed is not None:
        states[list(remote)] = indexed[list(remote)]
    elif remote:
        with ThreadPoolExecutor(_ASKED_AT_ONCE) as pool:
            states[list(remote)] = list(pool.map(RemoteShard.state, remote.values()))
    return states
