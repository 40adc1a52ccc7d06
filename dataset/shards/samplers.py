"""Stateless order of records, and a random generator for each sample.

The record at a position is a function of (seed, stream, epoch, position). A run can therefore be resumed at any step and with any
number of workers, and an epoch over a billion records needs no memory.
"""

from __future__ import annotations

import math
import zlib
from functools import lru_cache
from typing import Protocol

import numpy as np

_ROUNDS = 6
"""Number of rounds in the Feistel network. With four or fewer, the distance between two positions correlates with the distance
between their records. Changing this constant would change the order of every run, so that existing runs could not be resumed."""
_WORD = (1 << 64) - 1


def sample_rng(seed: int, stream: str, epoch: int, index: int) -> np.random.Generator:
    """Returns the generator of one sample (or one batch); equal arguments give equal random numbers on every machine."""
    entropy = [seed, zlib.crc32(stream.encode()), epoch, index]
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(entropy)))


class KeyedPermutation:
    """A pseudo-random permutation of 0 … ``count`` - 1, computed one element at a time in O(1) memory.

    It is a Feistel network on the digits (left, right) in base ``side`` = ceil(sqrt(count)). A result outside the range is
    permuted again until it is inside (cycle walking), which keeps the mapping one-to-one.
    """

    def __init__(self, count: int, seed: int, stream: str, epoch: int):
        self.count = count
        self.side = math.isqrt(count - 1) + 1 if count > 1 else 1
        entropy = np.random.SeedSequence([seed, zlib.crc32(stream.encode()), epoch])
        self.keys = [int(key) for key in entropy.generate_state(_ROUNDS, np.uint64)]

    def __call__(self, position: int) -> int:
        if not 0 <= position < self.count:
            raise IndexError(f"position {position} is not in 0 … {self.count - 1}")
        value = self._shuffle(position)
        while value >= self.count:
            value = self._shuffle(value)
        return value

    def _shuffle(self, value: int) -> int:
        left, right = divmod(value, self.side)
        for key in self.keys:
            left, right = right, (left + _mix(right ^ key)) % self.side
        return left * self.side + right


def _mix(value: int) -> int:
    """The finaliser of splitmix64: every input bit reaches every output bit."""
    value = (value + 0x9E3779B97F4A7C15) & _WORD
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _WORD
    return value ^ (value >> 31)


@lru_cache(maxsize=64)
def _permutation(count: int, seed: int, stream: str, epoch: int) -> KeyedPermutation:
    return KeyedPermutation(count, seed, stream, epoch)


class Order(Protocol):
    """Decides which records make up a micro-batch."""

    def batch(self, number: int) -> list[tuple[int, int]]:
        """Returns (epoch, slot) for each sample of micro-batch ``number``, counted over all ranks. Without weights, a slot is a
        record (:mod:`dataset.shards.weights`)."""
        ...

    def to_prefetch(self, number: int, *, first: bool) -> range:
        """Returns the micro-batches to prefetch while micro-batch ``number`` is read.

        Args:
            first: True if ``number`` is the first micro-batch of its :meth:`lane` that this process reads.
        """
        ...

    def lane(self, number: int) -> int:
        """Returns the lane (a fixed part of the data) to which micro-batch ``number`` belongs."""
        ...


class RandomOrder:
    """Visits every slot exactly once per epoch. All ranks share the order, which is new in every epoch.

    Micro-batch u covers the positions u * size … u * size + size - 1, whichever rank builds it. The number of ranks may therefore
    change when a run is resumed.
    """

    def __init__(self, count: int, batch_size: int, *, seed: int, stream: str):
        self.count, self.batch_size = count, batch_size
        self.seed, self.stream = seed, stream

    def batch(self, number: int) -> list[tuple[int, int]]:
        samples = []
        for offset in range(self.batch_size):
            epoch, position = divmod(number * self.batch_size + offset, self.count)
            samples.append((epoch, _permutation(self.count, self.seed, self.stream, epoch)(position)))
        return samples

    def to_prefetch(self, number: int, *, first: bool) -> range:
        # Nothing is prefetched for later micro-batches, since every record is in a different block, and the cache could not hold
        # all these blocks.
        return range(number, number + 1)

    def lane(self, number: int) -> int:
        return 0
