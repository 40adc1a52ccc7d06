"""A record order for storage on which long reads are fast and short random reads are slow. It uses blocks and lanes.

A block is a run of consecutive records of one shard. Blocks are distributed to C lanes in the same way in every epoch, and
micro-batch u belongs to lane u mod C. If the number of ranks R divides C, each rank reads C / R lanes that no other rank reads,
and the micro-batches do not depend on R.

In each epoch, a lane concatenates its blocks in a new random order, splits this sequence into windows at block boundaries, and
shuffles the records of each window. A reader that fetches entire blocks therefore fetches each block once per epoch, and only has
to cache the blocks of one window.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from utils.errors import UserError

WINDOW_BLOCKS, WINDOW_STEPS = 16, 8
"""Minimum size of a window: number of blocks in a window, and number of global batches in the windows of all lanes together."""

H = TypeVar("H")

_GAMMA, _FIRST, _SECOND = (np.uint64(value) for value in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


@dataclass(frozen=True)
class Lane:
    """The blocks of a lane.

    Attributes:
        firsts: (B,) int64, index of the first record of each block.
        counts: (B,) int32, number of records in each block.
        records: total number of records in the blocks.
    """

    firsts: np.ndarray
    counts: np.ndarray
    records: int


@dataclass(frozen=True)
class Window:
    """Records that are shuffled together.

    Attributes:
        epoch: epoch of the lane.
        first: position of the first record in the lane, counted over all epochs.
        records: (W,) int64, indices of the records in the order in which they are read.
    """

    epoch: int
    first: int
    records: np.ndarray


@dataclass(frozen=True)
class _EpochBlocks:
    """The blocks of a lane, in the order of an epoch.

    Attributes:
        epoch: epoch of the lane.
        blocks: (B,) indices into the blocks of the lane.
        ends: (B,) number of records up to the end of each block.
        cuts: (K + 1,) number of blocks before each of the K windows, and the total number of blocks.
    """

    epoch: int
    blocks: np.ndarray
    ends: np.ndarray
    cuts: np.ndarray


class BlockOrder:
    """Visits every record once per epoch, in blocks. Lanes may differ in length by one record; a shorter lane starts its next
    epoch one record earlier.

    Args:
        shard_sizes: number of records in each shard, in shard order.
        batch_size: number of records in a micro-batch.
        lanes: number of lanes; the number of ranks must divide it (see :func:`check_lanes`).
        block_records: maximum number of records in a block; a shard is split into blocks of nearly equal size.
        step: number of micro-batches in a global batch (one optimiser step), over all ranks.
        seed: seed of the order.
        stream: name of the stream; each stream has a different order.
        key: config key of the files, to name in error messages.

    Raises:
        UserError: if there are fewer records than lanes.
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
                f"{sizes.sum():,} records cannot fill {lanes} lanes",
                where=key,
                remedy="set fewer lanes, or order: random",
            )
        self.batch_size, self.block_records = batch_size, block_records
        self.seed, self.stream = seed, stream
        self.lanes = _deal(*_cut(sizes, block_records), lanes, _keys(seed, stream))
        self.window_records = max(WINDOW_BLOCKS * block_records, -(-WINDOW_STEPS * step * batch_size // lanes))
        """Minimum number of records in a window, except in a lane that has fewer records."""
        # The block orders of the two most recent epochs, and the two most recent windows, of each lane. Older ones are not
        # needed, because positions ascend, both for reading and for prefetching half a window ahead.
        self._epochs: dict[int, list[_EpochBlocks]] = {}
        self._windows: dict[int, list[Window]] = {}

    def batch(self, number: int) -> list[tuple[int, int]]:
        """Returns (epoch, slot) for each sample of micro-batch ``number``, counted over all ranks."""
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
        """Number of records in one and a half windows of each lane. Their blocks are still needed, or are being prefetched."""
        lane = self.lanes[0].records
        window = lane // self._windows_of(lane)
        return sum(min(lane.records, window + window // 2) for lane in self.lanes)

    def lane(self, number: int) -> int:
        """Returns the lane to which micro-batch ``number`` belongs."""
        return number % len(self.lanes)

    def to_prefetch(self, number: int, *, first: bool) -> range:
        """Returns the micro-batches to prefetch; see :class:`~dataset.shards.samplers.Order`.

        This is the lane's micro-batch half a window later, because all blocks of a window are needed shortly after the window
        begins; with ``first``, also all of the lane's micro-batches before it.
        """
        lanes = len(self.lanes)
        window = min(self.window_records, self.lanes[self.lane(number)].records)
        later = number + window // (2 * self.batch_size) * lanes
        return range(number if first else later, later + 1, lanes)

    def window(self, lane: int, position: int) -> Window:
        """Returns the window that contains a position of a lane, counted over all epochs."""
        held = self._windows.setdefault(lane, [])
        for window in held:
            if window.first <= position < window.first + len(window.records):
                return window
        return _keep_last_two(held, self._make_window(lane, position))

    def _make_window(self, lane: int, position: int) -> Window:
        own = self.lanes[lane]
        epoch, offset = divmod(position, own.records)
        in_epoch = self._epoch_blocks(lane, epoch)
        block = int(np.searchsorted(in_epoch.ends, offset, side="right"))
        index = int(np.searchsorted(in_epoch.cuts, block, side="right")) - 1
        blocks = in_epoch.blocks[in_epoch.cuts[index] : in_epoch.cuts[index + 1]]
        counts = own.counts[blocks]
        ends = np.cumsum(counts, dtype=np.int64)
        records = np.repeat(own.firsts[blocks] - (ends - counts), counts) + np.arange(ends[-1])
        order = _shuffled(len(records), _keys(self.seed, self.stream, lane, epoch, index))
        first = int(in_epoch.ends[in_epoch.cuts[index]] - counts[0])
        return Window(epoch, epoch * own.records + first, records[order])

    def _epoch_blocks(self, lane: int, epoch: int) -> _EpochBlocks:
        held = self._epochs.setdefault(lane, [])
        for in_epoch in held:
            if in_epoch.epoch == epoch:
                return in_epoch
        own = self.lanes[lane]
        blocks = _shuffled(len(own.counts), _keys(self.seed, self.stream, lane, epoch))
        ends = np.cumsum(own.counts[blocks], dtype=np.int64)
        # A window ends at a block boundary, so windows differ in size by up to almost a block.
        windows = self._windows_of(own.records)
        shares = np.arange(1, windows + 1) * own.records // windows
        cuts = np.concatenate([[0], np.searchsorted(ends, shares, side="left") + 1])
        return _keep_last_two(held, _EpochBlocks(epoch, blocks, ends, cuts))

    def _windows_of(self, records: int) -> int:
        """Returns the number of windows of a lane with this number of records."""
        return max(1, records // (self.window_records + self.block_records))


def _keep_last_two(held: list[H], new: H) -> H:
    """Appends an object to a list that keeps the last two, and returns the object."""
    held.append(new)
    del held[:-2]
    return new


def _cut(sizes: np.ndarray, block_records: int) -> tuple[np.ndarray, np.ndarray]:
    """Splits each shard into blocks of nearly equal size.

    Returns:
        (B,) int64, index of the first record of each block; and (B,) int32, number of records in each block.
    """
    blocks = -(-sizes // block_records)
    # In-place operations, because the arrays are large for a billion records.
    firsts = np.arange(blocks.sum())
    firsts -= np.repeat(np.cumsum(blocks) - blocks, blocks)
    firsts *= np.repeat(sizes, blocks)
    firsts //= np.repeat(blocks, blocks)
    firsts += np.repeat(np.cumsum(sizes) - sizes, blocks)
    return firsts, np.diff(firsts, append=sizes.sum()).astype(np.int32)


def _deal(firsts: np.ndarray, counts: np.ndarray, lanes: int, keys: np.ndarray) -> list[Lane]:
    """Concatenates all blocks in random order, and splits the sequence into lanes. A block that crosses a boundary between lanes
    is split."""
    order = _shuffled(len(firsts), keys)
    ends = np.cumsum(counts[order], dtype=np.int64)
    total, dealt = int(ends[-1]), []
    for lane in range(lanes):
        begin, end = total * lane // lanes, total * (lane + 1) // lanes
        first, last = np.searchsorted(ends, [begin, end - 1], side="right")
        blocks = order[first : last + 1]
        own_firsts, own_counts = firsts[blocks], counts[blocks]
        before = begin - int(ends[first] - own_counts[0])  # records of the first block that belong to the previous lane
        own_firsts[0] += before
        own_counts[0] -= before
        own_counts[-1] -= ends[last] - end
        dealt.append(Lane(own_firsts, own_counts, end - begin))
    return dealt


def _keys(seed: int, stream: str, *indices: int) -> np.ndarray:
    """Returns the keys of a permutation, (2,) uint64. ``indices`` are the lane, epoch and window, or a
    prefix of these."""
    # The number of indices is part of the entropy, because zeros at the end would make no difference.
    entropy = [seed, zlib.crc32(f"{stream}/blocks".encode()), len(indices), *indices]
    return np.random.SeedSequence(entropy).generate_state(2, np.uint64)


def _shuffled(count: int, keys: np.ndarray) -> np.ndarray:
    """Returns a pseudo-random permutation of 0 … ``count`` - 1: the numbers sorted by their hashes, which are all different."""
    return np.argsort(_mix(_mix(np.arange(count, dtype=np.uint64) ^ keys[0]) ^ keys[1]))


def _mix(values: np.ndarray) -> np.ndarray:
    """Applies the finaliser of splitmix64 to each number."""
    values = values + _GAMMA
    values ^= values >> np.uint64(30)
    values *= _FIRST
    values ^= values >> np.uint64(27)
    values *= _SECOND
    values ^= values >> np.uint64(31)
    return values
