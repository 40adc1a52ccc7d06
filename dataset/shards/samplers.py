"""Stateless order of records, and a random generator for each sample.

The record at a position is a function of (seed, stream, epoch, position). So a run can be resumed anywhere, with any number of
workers, and an epoch over a billion records costs no memory.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from functools import lru_cache
from typing import Protocol

import numpy as np

from dataset.shards.readers import Shards
from dataset.shards.weights import Weights

_ROUNDS = 6
"""Rounds of the Feistel network. Up to four, positions at some distances give records at some distances too often; and another
number changes the order of every run, so that none could be resumed."""
_WORD = (1 << 64) - 1


def sample_rng(seed: int, stream: str, epoch: int, index: int) -> np.random.Generator:
    """The generator of one sample (or one batch); the same arguments give the same numbers on every machine."""
    entropy = [seed, zlib.crc32(stream.encode()), epoch, index]
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(entropy)))


class KeyedPermutation:
    """A pseudo-random permutation of 0 … ``count`` - 1, computed one element at a time in O(1) memory.

    A Feistel network on the digits (left, right) in base ``side`` = ceil(sqrt(count)); numbers outside the range are sent
    through again until they fall inside (cycle walking), which keeps it one-to-one.
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
    """Which records make up a micro-batch."""

    def batch(self, number: int) -> list[tuple[int, int]]:
        """(epoch, record) of each sample of micro-batch ``number``, counted over all ranks."""
        ...

    def soon(self, number: int, *, first: bool) -> range:
        """The micro-batches whose records are to be fetched while ``number`` is read.

        ``first``: no earlier micro-batch of its :meth:`lane` was read by this process.
        """
        ...

    def lane(self, number: int) -> int:
        """The part of the data that micro-batch ``number`` is of."""
        ...


class RandomOrder:
    """Every epoch visits every record exactly once, in a new order; the ranks share one order.

    Micro-batch u covers the positions u * size … u * size + size - 1, whoever makes it, so that the number of ranks may change
    between a run and its resumption.
    """

    def __init__(self, count: int, batch_size: int, *, seed: int, stream: str):
        self.count, self.batch_size = count, batch_size
        self.seed, self.stream = seed, stream

    def batch(self, number: int) -> list[tuple[int, int]]:
        return [self._locate(number * self.batch_size + offset) for offset in range(self.batch_size)]

    def soon(self, number: int, *, first: bool) -> range:
        # No later ones: each record lies in another block, and a cache of blocks could not keep them.
        return range(number, number + 1)

    def lane(self, number: int) -> int:
        return 0

    def _locate(self, position: int) -> tuple[int, int]:
        epoch, position = divmod(position, self.count)
        return epoch, _permutation(self.count, self.seed, self.stream, epoch)(position)


class RecordSource:
    """The records of a stream in their order.

    Args:
        shards: the records.
        order: of the records, or of the slots of ``weights``.
        name: of the stream: it has random numbers of its own.
        seed: of the run.
        weights: how often an epoch reads each record; None: once.
    """

    def __init__(self, shards: Shards, order: Order, *, name: str, seed: int, weights: Weights | None = None):
        self.shards, self.order, self.name, self.seed, self.weights = shards, order, name, seed, weights
        self._begun: set[int] = set()

    def __len__(self) -> int:
        """The number of samples of an epoch."""
        return len(self.shards if self.weights is None else self.weights)

    def samples(self, number: int) -> Iterator[tuple[int, np.random.Generator]]:
        """Record number and generator of each sample of micro-batch ``number``."""
        if self.shards.fetches_ahead:
            self._expect(number)
        for epoch, slot in self.order.batch(number):
            record = self._record(epoch, slot)
            # By its slot, so that a record which an epoch reads twice is not augmented twice alike.
            yield record, sample_rng(self.seed, self.name, epoch, slot)

    def _record(self, epoch: int, slot: int) -> int:
        return slot if self.weights is None else self.weights.record(epoch, slot)

    def _expect(self, number: int) -> None:
        """Have remote records fetched before they are read."""
        lane = self.order.lane(number)
        for later in self.order.soon(number, first=lane not in self._begun):
            for epoch, slot in self.order.batch(later):
                self.shards.expect(self._record(epoch, slot))
        self._begun.add(lane)
