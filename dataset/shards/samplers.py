"""Stateless order of records, and a random generator for each sample.

The record at a position is a function of (seed, stream, epoch, position). So a run can be resumed anywhere, with any number of
workers, and an epoch over a billion records costs no memory.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Literal, Protocol

import numpy as np

from dataset.shards.readers import Shards
from utils.errors import UserError

OrderName = Literal["random", "sequential"]

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

    def _locate(self, position: int) -> tuple[int, int]:
        epoch, position = divmod(position, self.count)
        return epoch, _permutation(self.count, self.seed, self.stream, epoch)(position)


class SequentialOrder:
    """Whole shards dealt to ranks, shuffled each epoch, their records in file order: for disks where random reads are slow.

    The shards of a rank are the same in every epoch and no two ranks share one; a rank with fewer records starts its next
    epoch earlier. As the shares depend on the number of ranks, a resumed run repeats the first only with as many.

    Args:
        shard_sizes: records in each shard, in the order in which records are numbered.
        key: config key of the files, for the message.

    Raises:
        UserError: with fewer shards (that have records) than ranks.
    """

    def __init__(
        self, shard_sizes: Sequence[int], batch_size: int, *, seed: int, stream: str, world_size: int, key: str
    ):
        filled = [shard for shard, size in enumerate(shard_sizes) if size]
        if len(filled) < world_size:
            raise UserError(
                f"{key}: {len(filled)} shards with records for {world_size} ranks; with order: sequential each rank reads its "
                f"own shards, so split the data into at least {world_size} files or use order: random"
            )
        self.batch_size, self.world_size = batch_size, world_size
        self.seed, self.stream = seed, stream
        self.sizes = list(shard_sizes)
        self.starts = [0, *np.cumsum(shard_sizes, dtype=np.int64).tolist()]
        self.shards = _deal(filled, self.sizes, world_size)
        self.counts = [sum(self.sizes[shard] for shard in shards) for shards in self.shards]
        self._layouts: dict[tuple[int, int], tuple[list[int], list[int]]] = {}

    def batch(self, number: int) -> list[tuple[int, int]]:
        rank, local = number % self.world_size, number // self.world_size
        return [self._locate(rank, local * self.batch_size + offset) for offset in range(self.batch_size)]

    def _locate(self, rank: int, position: int) -> tuple[int, int]:
        epoch, position = divmod(position, self.counts[rank])
        shards, ends = self._layout(rank, epoch)
        place = int(np.searchsorted(ends, position, side="right"))
        shard = shards[place]
        return epoch, self.starts[shard + 1] - (ends[place] - position)

    def _layout(self, rank: int, epoch: int) -> tuple[list[int], list[int]]:
        """The rank's shards in the epoch's order, and the position at which each ends."""
        if (rank, epoch) not in self._layouts:
            dealt = self.shards[rank]
            order = KeyedPermutation(len(dealt), self.seed, f"{self.stream}/{rank}", epoch)
            shards = [dealt[order(place)] for place in range(len(dealt))]
            # Two epochs are enough: a batch may cross from one into the next.
            while len(self._layouts) >= 2 * self.world_size:
                self._layouts.pop(next(iter(self._layouts)))
            self._layouts[rank, epoch] = shards, np.cumsum([self.sizes[shard] for shard in shards]).tolist()
        return self._layouts[rank, epoch]


def _deal(shards: Sequence[int], sizes: Sequence[int], world_size: int) -> list[list[int]]:
    """Shards for each rank: the largest first, each to the rank that has the fewest records so far."""
    dealt: list[list[int]] = [[] for _ in range(world_size)]
    totals = [0] * world_size
    for shard in sorted(shards, key=lambda shard: (-sizes[shard], shard)):
        rank = min(range(world_size), key=lambda rank: (totals[rank], len(dealt[rank]), rank))
        dealt[rank].append(shard)
        totals[rank] += sizes[shard]
    return [sorted(numbers) for numbers in dealt]


class RecordSource:
    """The records of a stream in their order.

    Args:
        shards: the records.
        batch_size: records in a micro-batch.
        order: :class:`RandomOrder` or :class:`SequentialOrder`.
        name: of the stream: it has random numbers of its own.
        seed, world_size: of the run.

    Raises:
        UserError: in sequential order, with fewer shards than ranks.
    """

    def __init__(self, shards: Shards, batch_size: int, *, order: OrderName, name: str, seed: int, world_size: int):
        self.shards, self.name, self.seed = shards, name, seed
        self.order: Order
        if order == "random":
            self.order = RandomOrder(len(shards), batch_size, seed=seed, stream=name)
        else:
            self.order = SequentialOrder(
                shards.sizes, batch_size, seed=seed, stream=name, world_size=world_size, key=shards.key
            )

    def samples(self, number: int) -> Iterator[tuple[int, np.random.Generator]]:
        """Record number and generator of each sample of micro-batch ``number``."""
        for epoch, index in self.order.batch(number):
            yield index, sample_rng(self.seed, self.name, epoch, index)
