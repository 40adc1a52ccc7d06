"""Weights of the data sets in a stream. An epoch reads records of a data set with a larger weight more often.

An epoch consists of slots: a data set with n records and weight w has round(w n) slots. Each epoch continues in the data set
where the previous epoch ended, and wraps around after the last record. With a weight of 1, slots and records are the same.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence

import numpy as np


class Weights:
    """The slots of an epoch.

    Args:
        shard_sizes: number of records of each shard, or of each run of records in a shard, for each data set.
        weights: weight of each data set.

    Attributes:
        sizes: (P,) int64, number of slots of each part. A part is a shard or its beginning; a shard that an epoch reads several
            times has several parts.
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
        """Returns the index of the record in a slot of an epoch."""
        data_set = bisect.bisect_right(self._ends, slot)
        length = self._lengths[data_set]
        shift = epoch * length + slot - (self._ends[data_set] - length)
        return self._firsts[data_set] + shift % self._counts[data_set]


def _parts(sizes: np.ndarray, length: int) -> np.ndarray:
    """Repeats the sizes of the non-empty shards until their sum is ``length``; the last one is cut."""
    sizes = sizes[sizes > 0]
    if not length:
        return sizes
    ends = np.cumsum(np.tile(sizes, -(-length // int(sizes.sum()))))
    last = int(np.searchsorted(ends, length, side="left"))
    return np.diff(np.append(ends[:last], length), prepend=0)
