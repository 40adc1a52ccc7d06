"""Weights of the data sets in a stream: an epoch reads some records more often than others.

An epoch has slots instead of records: a data set of n records and weight w has round(w n) of them, and each epoch goes on in
the data set where the one before has ended, from the last record to the first. With weights of one, slots are records.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence

import numpy as np


class Weights:
    """The slots of an epoch.

    Args:
        shard_sizes: records of each shard, for each data set.
        weights: of each data set.

    Attributes:
        sizes: (P,) int64, slots of each part: a shard, or its beginning, as often as the epoch reads it.
    """

    def __init__(self, shard_sizes: Sequence[Sequence[int]], weights: Sequence[float]):
        self._counts = [sum(sizes) for sizes in shard_sizes]
        self._firsts = (np.cumsum(self._counts) - self._counts).tolist()
        self._lengths = [
            max(1, round(weight * count)) if count else 0 for count, weight in zip(self._counts, weights, strict=True)
        ]
        self._ends: list[int] = np.cumsum(self._lengths).tolist()
        parts = [
            _parts(np.array(sizes, np.int64), length) for sizes, length in zip(shard_sizes, self._lengths, strict=True)
        ]
        self.sizes = np.concatenate(parts)

    def __len__(self) -> int:
        return self._ends[-1]

    def record(self, epoch: int, slot: int) -> int:
        """The record in a slot of an epoch."""
        own = bisect.bisect_right(self._ends, slot)
        length = self._lengths[own]
        shift = epoch * length + slot - (self._ends[own] - length)
        return self._firsts[own] + shift % self._counts[own]


def _parts(sizes: np.ndarray, length: int) -> np.ndarray:
    """The shards that have records, again and again, cut at ``length``."""
    sizes = sizes[sizes > 0]
    if not length:
        return sizes
    ends = np.cumsum(np.tile(sizes, -(-length // int(sizes.sum()))))
    last = int(np.searchsorted(ends, length, side="left"))
    return np.diff(np.append(ends[:last], length), prepend=0)
