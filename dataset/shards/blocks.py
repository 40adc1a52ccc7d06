"""An order of records for data where long reads are cheap and many short ones are not: blocks, in lanes.

A block is a run of records of one shard. Blocks are dealt to lanes, the same in every epoch, and micro-batch u is of lane
u mod C, so that of R ranks, where R divides C, each reads C / R lanes that no other reads, and micro-batches do not depend on R.

In each epoch a lane lays its blocks end to end in a new random order, cuts this row into windows between blocks, and shuffles
the records of each window. So whoever fetches whole blocks fetches each once, and keeps those of a window.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from utils.errors import UserError

BLOCK_RECORDS = 1000
"""Records of a block, unless a config says otherwise."""

WINDOW_BLOCKS, WINDOW_STEPS = 16, 8
"""Least size of a window: blocks in each, and global batches in those of all lanes together."""

H = TypeVar("H")

_GAMMA, _FIRST, _SECOND = (np.uint64(value) for value in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


@dataclass(frozen=True)
class Lane:
    """The blocks of a lane.

    Attributes:
        firsts: (B,) int64, number of the first record of each block.
        counts: (B,) int32, records of each block.
        records: those of all blocks.
    """

    firsts: np.ndarray
    counts: np.ndarray
    records: int


@dataclass(frozen=True)
class Window:
    """Records that are shuffled among each other.

    Attributes:
        epoch: of the lane.
        first: position in the lane of the first one, counted through all epochs.
        records: (W,) int64, record numbers in their order.
    """

    epoch: int
    first: int
    records: np.ndarray


@dataclass(frozen=True)
class _Row:
    """The blocks of a lane in an epoch's order.

    Attributes:
        epoch: of the lane.
        blocks: (B,) indexes into the lane's blocks.
        ends: (B,) records up to the end of each of them.
        cuts: (K + 1,) blocks that lie before each window, and before the end.
    """

    epoch: int
    blocks: np.ndarray
    ends: np.ndarray
    cuts: np.ndarray


class BlockOrder:
    """Every epoch visits every record once; a lane with one record less starts its next epoch one record earlier.

    Args:
        shard_sizes: records of each shard, in the order in which records are numbered.
        batch_size: records in a micro-batch.
        lanes: number of lanes; numbers of ranks must divide it (see :func:`check_ranks`).
        block_records: largest number of records in a block; a shard is cut into blocks of nearly equal size.
        step: micro-batches of a global batch, over all ranks.
        key: config key of the files, for the message.

    Raises:
        UserError: with fewer records than lanes.
    """

    def __init__(
        self,
        shard_sizes: Sequence[int] | np.ndarray,
        batch_size: int,
        *,
        lanes: int,
        block_records: int,
        step: int,
        seed: int,
        stream: str,
        key: str = "files",
    ):
        sizes = np.asarray(shard_sizes, np.int64)
        if sizes.sum() < lanes:
            raise UserError(
                f"{key}: {sizes.sum():,} records cannot fill {lanes} lanes; set fewer lanes, or order: random"
            )
        self.batch_size, self.block_records = batch_size, block_records
        self.seed, self.stream = seed, stream
        self.lanes = _deal(*_cut(sizes, block_records), lanes, _keys(seed, stream))
        self.window_records = max(WINDOW_BLOCKS * block_records, -(-WINDOW_STEPS * step * batch_size // lanes))
        """Least number of records of a window, except in a lane that has fewer."""
        # The rows and windows of each lane that were used last. Nothing older is needed: positions ascend, both here and half a
        # window further on.
        self._rows: dict[int, list[_Row]] = {}
        self._windows: dict[int, list[Window]] = {}

    def batch(self, number: int) -> list[tuple[int, int]]:
        """(epoch, record) of each sample of micro-batch ``number``, counted over all ranks."""
        turn, lane = divmod(number, len(self.lanes))
        position, end = turn * self.batch_size, (turn + 1) * self.batch_size
        samples: list[tuple[int, int]] = []
        while position < end:
            window = self.window(lane, position)
            taken = window.records[position - window.first : end - window.first].tolist()
            samples += [(window.epoch, record) for record in taken]
            position += len(taken)
        return samples

    @property
    def records_in_use(self) -> int:
        """Records of a window and a half of each lane: those of blocks that are needed again, or are fetched for later."""
        lane = self.lanes[0].records
        window = lane // self._windows_of(lane)
        return sum(min(lane.records, window + window // 2) for lane in self.lanes)

    def lane(self, number: int) -> int:
        """The lane that micro-batch ``number`` is of."""
        return number % len(self.lanes)

    def soon(self, number: int, *, first: bool) -> range:
        """See :class:`~dataset.shards.samplers.Order`: the micro-batch of the lane that comes half a window later, since a
        window's blocks are all needed soon after it begins; at first those before it too."""
        lanes = len(self.lanes)
        window = min(self.window_records, self.lanes[self.lane(number)].records)
        later = number + window // (2 * self.batch_size) * lanes
        return range(number if first else later, later + 1, lanes)

    def window(self, lane: int, position: int) -> Window:
        """The window that holds a position of a lane, counted through all epochs."""
        held = self._windows.setdefault(lane, [])
        for window in held:
            if window.first <= position < window.first + len(window.records):
                return window
        return _hold(held, self._make_window(lane, position))

    def _make_window(self, lane: int, position: int) -> Window:
        own = self.lanes[lane]
        epoch, offset = divmod(position, own.records)
        row = self._row(lane, epoch)
        block = int(np.searchsorted(row.ends, offset, side="right"))
        number = int(np.searchsorted(row.cuts, block, side="right")) - 1
        blocks = row.blocks[row.cuts[number] : row.cuts[number + 1]]
        counts = own.counts[blocks]
        ends = np.cumsum(counts, dtype=np.int64)
        records = np.repeat(own.firsts[blocks] - (ends - counts), counts) + np.arange(ends[-1])
        order = _shuffled(len(records), _keys(self.seed, self.stream, lane, epoch, number))
        first = int(row.ends[row.cuts[number]] - counts[0])
        return Window(epoch, epoch * own.records + first, records[order])

    def _row(self, lane: int, epoch: int) -> _Row:
        held = self._rows.setdefault(lane, [])
        for row in held:
            if row.epoch == epoch:
                return row
        own = self.lanes[lane]
        blocks = _shuffled(len(own.counts), _keys(self.seed, self.stream, lane, epoch))
        ends = np.cumsum(own.counts[blocks], dtype=np.int64)
        # A window ends with the block in which its share of the lane ends: it may lack nearly a block of it.
        windows = self._windows_of(own.records)
        shares = np.arange(1, windows + 1) * own.records // windows
        cuts = np.concatenate([[0], np.searchsorted(ends, shares, side="left") + 1])
        return _hold(held, _Row(epoch, blocks, ends, cuts))

    def _windows_of(self, records: int) -> int:
        """The number of windows of a lane."""
        return max(1, records // (self.window_records + self.block_records))


def _hold(held: list[H], made: H) -> H:
    """Add to the two made last; returns what was made."""
    held.append(made)
    del held[:-2]
    return made


def check_ranks(lanes: int, ranks: int, key: str) -> None:
    """Raise a :class:`UserError` with the config ``key`` of the lanes, where not all ranks get equally many."""
    if lanes % ranks:
        divisors = [str(number) for number in range(1, lanes + 1) if lanes % number == 0]
        would_do = f"{', '.join(divisors[:-1])} or {divisors[-1]} ranks" if len(divisors) > 1 else "1 rank"
        raise UserError(
            f"{key} = {lanes}: {ranks} ranks cannot have equally many lanes; run on {would_do}, or set {key} to a multiple of "
            f"{ranks} before the run begins"
        )


def _cut(sizes: np.ndarray, block_records: int) -> tuple[np.ndarray, np.ndarray]:
    """(B,) int64 first record and (B,) int32 number of records of all blocks: each shard in nearly equal ones."""
    blocks = -(-sizes // block_records)
    # In place: a billion records make arrays that count.
    firsts = np.arange(blocks.sum())
    firsts -= np.repeat(np.cumsum(blocks) - blocks, blocks)
    firsts *= np.repeat(sizes, blocks)
    firsts //= np.repeat(blocks, blocks)
    firsts += np.repeat(np.cumsum(sizes) - sizes, blocks)
    return firsts, np.diff(firsts, append=sizes.sum()).astype(np.int32)


def _deal(firsts: np.ndarray, counts: np.ndarray, lanes: int, keys: np.ndarray) -> list[Lane]:
    """Lay all blocks end to end in random order, and cut the row into lanes; a block on a border is cut too."""
    order = _shuffled(len(firsts), keys)
    ends = np.cumsum(counts[order], dtype=np.int64)
    total, dealt = int(ends[-1]), []
    for lane in range(lanes):
        begin, end = total * lane // lanes, total * (lane + 1) // lanes
        first, last = np.searchsorted(ends, [begin, end - 1], side="right")
        blocks = order[first : last + 1]
        own_firsts, own_counts = firsts[blocks], counts[blocks]
        before = begin - int(ends[first] - own_counts[0])  # records of the first block that are of the lane before
        own_firsts[0] += before
        own_counts[0] -= before
        own_counts[-1] -= ends[last] - end
        dealt.append(Lane(own_firsts, own_counts, end - begin))
    return dealt


def _keys(seed: int, stream: str, *indices: int) -> np.ndarray:
    """(2,) uint64 for a permutation; ``indices``: lane, epoch, window, as far as there are any."""
    # The number of parts comes first: zeros at the end would make no difference.
    entropy = [seed, zlib.crc32(f"{stream}/blocks".encode()), len(indices), *indices]
    return np.random.SeedSequence(entropy).generate_state(2, np.uint64)


def _shuffled(count: int, keys: np.ndarray) -> np.ndarray:
    """A pseudo-random permutation of 0 … ``count`` - 1: their order by hashes, none of which are equal."""
    return np.argsort(_mix(_mix(np.arange(count, dtype=np.uint64) ^ keys[0]) ^ keys[1]))


def _mix(values: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64, of each number."""
    values = values + _GAMMA
    values ^= values >> np.uint64(30)
    values *= _FIRST
    values ^= values >> np.uint64(27)
    values *= _SECOND
    values ^= values >> np.uint64(31)
    return values
