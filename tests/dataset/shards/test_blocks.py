"""Block order: lanes, blocks and windows, and the records that each rank reads."""

from __future__ import annotations

import pickle
import time
from collections import OrderedDict

import numpy as np
import pytest

from dataset.config import check_lanes
from dataset.shards.blocks import BlockOrder
from tests.messages import naming
from utils.errors import UserError

SIZES = [70, 0, 131, 5, 64, 33, 1, 200]


def order_of(sizes=SIZES, batch_size=3, lanes=4, block_records=16, step=4, seed=0, stream="images"):
    """Returns a block order. ``step`` is the number of micro-batches in a global batch."""
    return BlockOrder(
        np.array(sizes), batch_size, lanes=lanes, block_records=block_records, step=step, seed=seed, stream=stream
    )


def lane_of(order: BlockOrder, lane: int, records: int) -> list[tuple[int, int]]:
    """The first samples of a lane as (epoch, record)."""
    turns = -(-records // order.batch_size)
    drawn = [sample for turn in range(turns) for sample in order.batch(turn * len(order.lanes) + lane)]
    return drawn[:records]


@pytest.mark.parametrize("lanes", [1, 2, 4, 7, 12])
@pytest.mark.parametrize("block_records", [1, 16, 1000])
def test_lanes_share_records_evenly_and_read_each_once_per_epoch(lanes, block_records):
    order = order_of(lanes=lanes, block_records=block_records)
    counts = [lane.records for lane in order.lanes]
    assert max(counts) - min(counts) <= 1
    for epoch in range(3):
        seen = []
        for lane, count in enumerate(counts):
            drawn = lane_of(order, lane, 3 * count)[epoch * count : (epoch + 1) * count]
            assert {when for when, _ in drawn} == {epoch}
            seen += [record for _, record in drawn]
        assert sorted(seen) == list(range(sum(SIZES)))


def test_a_lane_has_the_same_records_in_every_epoch_in_another_order():
    order = order_of()
    drawn = [record for _, record in lane_of(order, 1, 3 * order.lanes[1].records)]
    epochs = np.split(np.array(drawn), 3)
    assert len({tuple(sorted(epoch)) for epoch in epochs}) == 1
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_a_block_is_a_contiguous_part_of_one_shard_within_the_size_limit():
    order = order_of(block_records=16)
    shard_ends = np.cumsum(SIZES)
    for lane in order.lanes:
        assert lane.counts.min() >= 1 and lane.counts.max() <= 16
        first = np.searchsorted(shard_ends, lane.firsts, side="right")
        last = np.searchsorted(shard_ends, lane.firsts + lane.counts - 1, side="right")
        assert np.array_equal(first, last)


def test_the_order_depends_only_on_seed_stream_and_index():
    straight = [order_of().batch(number) for number in range(400)]
    again = order_of()
    assert [again.batch(number) for number in range(399, -1, -1)] == straight[::-1]
    assert [order_of().batch(number) for number in (0, 17, 399)] == [straight[number] for number in (0, 17, 399)]
    assert pickle.loads(pickle.dumps(again)).batch(250) == straight[250]
    for other in (order_of(seed=1), order_of(stream="texts")):
        assert sum(other.batch(number) == straight[number] for number in range(400)) < 4


def test_the_order_is_the_same_in_every_version():
    """A checkpoint stores only a position in the order."""
    order = order_of()
    assert order.batch(0) == [(0, 7), (0, 321), (0, 324)]
    assert order.batch(171) == [(1, 195), (1, 193), (1, 280)]
    assert order.batch(1002) == [(5, 363), (5, 15), (5, 20)]


@pytest.mark.parametrize("lanes", [4, 8])
def test_ranks_that_divide_the_lanes_read_the_same_steps_from_separate_lanes(lanes):
    order, step = order_of(lanes=lanes), 8
    home = {record: lane for lane in range(lanes) for _, record in lane_of(order, lane, order.lanes[lane].records)}
    steps = {}
    for ranks in (1, 2, 4):
        own: list[set[int]] = [set() for _ in range(ranks)]
        for number in range(25 * step):
            own[number % ranks] |= {home[record] for _, record in order.batch(number)}
        assert sum(map(len, own)) == lanes, "two ranks read the same lane"
        steps[ranks] = [
            sorted(
                sample
                for rank in range(ranks)
                for turn in range(step // ranks)
                for sample in order.batch(start + turn * ranks + rank)
            )
            for start in range(0, 25 * step, step)
        ]
    assert steps[1] == steps[2] == steps[4]


@pytest.mark.parametrize(("lanes", "ranks", "supported"), [(8, 3, "1, 2, 4 or 8"), (1, 2, "1"), (7, 14, "1 or 7")])
def test_other_rank_counts_are_rejected_with_the_supported_ones(lanes, ranks, supported):
    with pytest.raises(UserError, match=naming(f"data.images.lanes = {lanes}", f"{ranks} ranks", supported)):
        check_lanes(lanes, ranks, "data.images.lanes")
    check_lanes(lanes, lanes, "data.images.lanes")
    check_lanes(lanes, 1, "data.images.lanes")


def test_more_lanes_than_records_are_rejected():
    with pytest.raises(UserError, match=naming("data.images.files", "11 records", "12 lanes", "order: random")):
        BlockOrder([11], 3, lanes=12, block_records=4, step=4, seed=0, stream="images", key="data.images.files")


def test_records_are_shuffled_within_at_least_eight_global_batches():
    """Shuffling within single blocks would not be enough: neighbouring records must end up far apart."""
    order = order_of([5000] * 8, batch_size=25, lanes=4, block_records=20, step=8)
    sizes = set()
    for lane in range(4):
        drawn = np.array([record for _, record in lane_of(order, lane, order.lanes[lane].records)])
        where = np.empty(40_000, int)
        where[drawn] = np.arange(len(drawn))
        first, last = order.lanes[lane].firsts, order.lanes[lane].firsts + order.lanes[lane].counts - 1
        # The records of a block stay in one window, so that the block is fetched once, but few of them stay close together.
        spans = np.array([np.ptp(where[a : b + 1]) for a, b in zip(first, last, strict=True)])
        window = 8 * 8 * 25 // 4
        assert np.mean(spans > 0.8 * window) > 0.95
        sizes |= {len(order.window(lane, turn * 25).records) for turn in range(100)}
    assert min(sizes) >= 8 * 8 * 25 // 4
    assert max(sizes) < 8 * 8 * 25


def test_blocks_have_a_new_random_order_in_each_epoch():
    order = order_of([5000] * 8, batch_size=25, lanes=2, block_records=100, step=2)
    places = []
    for epoch in range(3):
        drawn = [record for _, record in lane_of(order, 0, 3 * 20_000)][epoch * 20_000 : (epoch + 1) * 20_000]
        blocks = np.searchsorted(np.sort(order.lanes[0].firsts), drawn, side="right") - 1
        places.append([np.mean(np.flatnonzero(blocks == block)) for block in range(blocks.max() + 1)])
    correlations = np.corrcoef([np.arange(len(places[0])), *places])
    assert np.abs(correlations - np.eye(4)).max() < 0.25, "with 200 blocks, three standard deviations are 0.21"


def test_every_lane_has_a_share_of_every_data_set():
    """Records of data sets are numbered one data set after the other, and a step may read from only a few lanes."""
    order = order_of([1000] * 40, lanes=4, block_records=50, step=4)
    for lane in order.lanes:
        for part in range(4):
            own = lane.counts[(lane.firsts // 10_000) == part].sum()
            assert 1700 < own < 3300, "out of 10,000; the standard deviation is 300"


def test_windows_have_at_least_sixteen_blocks():
    order = order_of([5000] * 8, batch_size=1, lanes=2, block_records=100, step=2)
    assert min(len(order.window(0, position).records) for position in range(0, 20_000, 500)) >= 1600


def same_pairs(shards: np.ndarray) -> int:
    """The number of pairs of records from the same shard."""
    counts = np.bincount(shards)
    return int((counts * (counts - 1) // 2).sum())


@pytest.mark.parametrize(("of_step", "step", "lanes"), [(True, 8, 8), (True, 16, 8), (False, 8, 8), (False, 4, 8)])
def test_batches_mix_shards_as_well_as_random_draws_from_the_window(of_step, step, lanes):
    """The number of same-shard pairs is compared over all batches (steps or micro-batches), and for each step. It is not compared
    for each micro-batch, because the distribution of few pairs is skewed."""
    size, shards, per_shard = 32, 160, 500
    order = order_of([per_shard] * shards, batch_size=size, lanes=lanes, block_records=125, step=step)
    rng, found = np.random.default_rng(0), []
    batches = [range(s * step, (s + 1) * step) for s in range(60)] if of_step else [range(u, u + 1) for u in range(480)]
    for numbers in batches:
        turns = {(number % lanes, number // lanes) for number in numbers}
        ends = [(lane, position) for lane, turn in turns for position in (turn * size, (turn + 1) * size - 1)]
        windows = {(lane, order.window(lane, position).first): order.window(lane, position) for lane, position in ends}
        if len(windows) > len({lane for lane, _ in turns}):
            continue  # this batch spans two windows
        pool = np.concatenate([window.records for window in windows.values()]) // per_shard
        batch = np.array([record for number in numbers for _, record in order.batch(number)]) // per_shard
        drawn = [same_pairs(rng.choice(pool, len(batch), replace=False)) for _ in range(100)]
        found.append((same_pairs(batch), np.mean(drawn), np.var(drawn)))
    pairs, expected, variance = np.array(found).T
    assert len(pairs) > 20
    assert abs(pairs.sum() - expected.sum()) < 4 * variance.sum() ** 0.5
    if of_step:
        assert (np.abs(pairs - expected) < 4 * variance**0.5).all()


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def test_a_rank_fetches_only_its_share(ranks):
    """A rank fetches whole blocks when it first needs them, and keeps the blocks of the current and the next window of each
    lane."""
    sizes = np.random.default_rng(0).integers(300, 1700, 200)
    nbytes = np.random.default_rng(1).integers(20_000, 60_000, sizes.sum())
    before = np.concatenate([[0], np.cumsum(nbytes)])
    order = order_of(sizes, batch_size=16, lanes=8, block_records=100, step=8)
    for rank in range(ranks):
        own = range(rank, 8, ranks)
        firsts = np.sort(np.concatenate([order.lanes[lane].firsts for lane in own]))
        ends = np.sort(np.concatenate([order.lanes[lane].firsts + order.lanes[lane].counts for lane in own]))
        kept: OrderedDict[int, None] = OrderedDict()
        room, fetched = 3 * order.window_records // 100 * len(own), 0
        for number in range(rank, int(sizes.sum()) // 16, ranks):
            for epoch, record in order.batch(number):
                block = int(np.searchsorted(firsts, record, side="right")) - 1
                assert epoch > 0 or firsts[block] <= record < ends[block], "this record is in another rank's lane"
                if block not in kept:
                    fetched += int(before[ends[block]] - before[firsts[block]])
                kept[block] = None
                kept.move_to_end(block)
                if len(kept) > room:
                    kept.popitem(last=False)
        assert room < 0.2 * len(firsts)
        assert 0.9 < fetched / (before[-1] / ranks) < 1.1


def test_a_billion_records_in_blocks_take_little_memory_and_time():
    shards, records = 130_000, 1_300_000_000
    started = time.process_time()
    order = BlockOrder(
        np.full(shards, records // shards), 64, lanes=64, block_records=1000, step=64, seed=0, stream="images"
    )
    held = sum(lane.firsts.nbytes + lane.counts.nbytes for lane in order.lanes)
    assert held < 20 << 20
    assert time.process_time() - started < 10, "building the order must take seconds, not minutes"
    drawn = [record for turn in range(100) for _, record in order.batch(64 * turn + 63)]
    assert len(set(drawn)) == len(drawn) == 6400
    assert {epoch for epoch, _ in order.batch(records // 64)} <= {0, 1}
