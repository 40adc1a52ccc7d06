"""The weights of data sets in a stream determine how often an epoch reads each record."""

from __future__ import annotations

from collections import Counter

import pytest

from dataset.shards.weights import Weights


def drawn(weights: Weights, epochs: int) -> list[Counter]:
    """Returns, for each epoch, how often it reads each record."""
    return [Counter(weights.record(epoch, place) for place in range(len(weights))) for epoch in range(epochs)]


def test_weights_of_one_have_no_effect():
    weights = Weights([[3, 4], [5]], [1, 1])
    assert weights.sizes.tolist() == [3, 4, 5]
    assert [weights.record(7, place) for place in range(12)] == list(range(12))


@pytest.mark.parametrize("weight", [0.25, 0.5, 1, 1.5, 2, 3.7])
def test_an_epoch_reads_each_record_as_often_as_the_weight_says(weight):
    """The count is rounded up or down in each epoch, and exact over several epochs."""
    weights = Weights([[30, 10], [7, 0, 13]], [1, weight])
    length = round(weight * 20)
    assert len(weights) == 40 + length == weights.sizes.sum()
    epochs = drawn(weights, 20)
    for counts in epochs:
        assert [counts[record] for record in range(40)] == [1] * 40
        own = [counts[record] for record in range(40, 60)]
        assert sum(own) == length and max(own) - min(own) <= 1
    total = sum(epochs, Counter())
    assert all(total[record] == pytest.approx(20 * weight, abs=1) for record in range(40, 60))


def test_repeated_shards_stay_contiguous():
    """In the first epoch, the records of each part come from one shard. Blocks are pieces of parts, so the records of a block are
    contiguous in one shard."""
    weights = Weights([[5, 0, 4], [6]], [1.5, 2])
    assert weights.sizes.tolist() == [5, 4, 5, 6, 6]
    assert [weights.record(0, place) for place in (0, 8, 9, 13, 14, 19, 20, 25)] == [0, 8, 0, 4, 9, 14, 9, 14]


def test_a_small_weight_reads_at_least_one_record():
    assert len(Weights([[2], [5]], [0.001, 1])) == 6
    assert len(Weights([[0], [5]], [2, 1])) == 5
