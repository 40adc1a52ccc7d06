"""The random order of records: a permutation of any size, disjoint shares of ranks, and no state."""

from __future__ import annotations

import numpy as np
import pytest

from dataset.shards.samplers import KeyedPermutation, RandomOrder, sample_rng


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 16, 17, 100, 1000])
def test_random_order_is_a_permutation_of_any_size(count):
    order = KeyedPermutation(count, 0, "images", 0)
    assert sorted(order(position) for position in range(count)) == list(range(count))


def test_the_order_depends_on_seed_stream_and_epoch():
    def order(*key):
        permutation = KeyedPermutation(1000, *key)
        return [permutation(position) for position in range(1000)]

    reference = order(0, "images", 0)
    assert order(0, "images", 0) == reference
    for other in (order(1, "images", 0), order(0, "regions", 0), order(0, "images", 1)):
        assert np.mean(np.equal(other, reference)) < 0.02


def test_neighbouring_positions_are_not_neighbouring_records():
    order = KeyedPermutation(10_000, 0, "images", 0)
    records = np.array([order(position) for position in range(10_000)])
    assert abs(np.corrcoef(records[:-1], records[1:])[0, 1]) < 0.05
    assert abs(np.corrcoef(records, np.arange(10_000))[0, 1]) < 0.05


@pytest.mark.parametrize("stride", [1, 100, 101, 5000])
def test_positions_at_a_fixed_distance_are_not_records_at_a_fixed_distance(stride):
    """The permutation works on a square of side 100. Too few rounds would show as a pattern along it."""
    order = KeyedPermutation(10_000, 0, "images", 0)
    records = np.array([order(position) for position in range(10_000)])
    distances = (records[stride:] - records[:-stride]) % 10_000
    for digit in (distances, distances // 100, distances % 100):
        common = np.bincount(digit).max() / len(digit)
        assert common < 0.02, "some distances are much more frequent than others"
    assert len(np.unique(distances)) > 0.55 * len(distances), "of random distances, 63% differ"


def test_the_order_is_the_same_in_every_version():
    """A checkpoint stores only a position. In another order, a resumed run would read some records twice and others never."""
    small, large = KeyedPermutation(10, 3, "images", 1), KeyedPermutation(1_323_042_683, 0, "texts", 2)
    assert [small(position) for position in range(10)] == [3, 0, 9, 2, 1, 6, 7, 5, 8, 4]
    assert [large(position) for position in range(4)] == [1018388698, 1228738186, 520153574, 274696321]
    drawn = sample_rng(3, "images", 1, 7).integers(1000, size=4).tolist()
    assert drawn == [287, 684, 757, 625]


def test_a_billion_records_need_no_memory():
    count = 1_323_042_683
    order = RandomOrder(count, 4, seed=0, stream="images")
    drawn = [record for number in range(2000) for record in order.batch(number)]
    assert len(set(drawn)) == len(drawn)
    assert all(epoch == 0 and 0 <= index < count for epoch, index in drawn)
    assert {epoch for epoch, _ in order.batch(count // 4)} == {0, 1}


def test_an_epoch_visits_every_record_once_over_all_ranks():
    order = RandomOrder(10, 3, seed=5, stream="texts")
    drawn = [record for number in range(20) for record in order.batch(number)]
    for epoch in range(6):
        assert sorted(index for e, index in drawn if e == epoch) == list(range(10))


def test_each_sample_has_its_own_random_numbers():
    def draw(*key):
        return sample_rng(*key).random()

    assert draw(0, "images", 0, 3) == draw(0, "images", 0, 3)
    keys = [(0, "images", 0, 3), (1, "images", 0, 3), (0, "texts", 0, 3), (0, "images", 1, 3), (0, "images", 0, 4)]
    assert len({draw(*key) for key in keys}) == len(keys)
