"""The search for the largest number of examples that fits in few tries, and the micro-batches of a step."""

import math

import pytest

from tools.plan.search import divide_batch, largest_that_fits


@pytest.mark.parametrize("start", [1, 8, 100, 5000])
def test_the_largest_micro_batch_is_found_in_a_few_tries(start):
    tried = []

    def cost(examples: int) -> float:
        tried.append(examples)
        return 10 + 3 * examples + examples % 3

    assert 295 <= largest_that_fits(cost, 10 + 3 * 300, start) <= 300
    assert len(tried) <= 8


@pytest.mark.parametrize("start", [1, 7, 500])
@pytest.mark.parametrize("largest", [0, 1, 2, 6, 37, 49])
def test_a_small_largest_micro_batch_is_found_exactly(largest, start):
    """This includes infinite costs, as on a GPU that ran out of memory."""
    for above in (2.0, math.inf):
        assert (
            largest_that_fits(
                lambda examples, above=above: examples if examples <= largest else above * examples, largest, start
            )
            == largest
        )


@pytest.mark.parametrize("start", [1, 8, 128, 280, 500])
@pytest.mark.parametrize("largest", [6, 37, 296, 1000])
def test_costs_that_flatten_near_the_limit_do_not_cause_many_tries(largest, start):
    """As on a GPU: near its limit, the allocator frees cached memory, and a micro-batch that does not fit has no finite cost."""
    tried = []
    limit = 3 + 0.26 * largest

    def cost(examples: int) -> float:
        tried.append(examples)
        return math.inf if examples > largest else min(3 + 0.25 * examples, 0.9 * limit + 0.001 * examples)

    assert 0.98 * largest <= largest_that_fits(cost, limit, start) <= largest
    assert len(tried) <= 12
    assert len(set(tried)) == len(tried)


@pytest.mark.parametrize(
    ("total", "gpus", "largest", "shared"),
    [
        (1024, 8, 300, (128, 1)),
        (1024, 8, 100, (64, 2)),
        (1024, 1, 300, (256, 4)),
        (1024, 6, 50, (43, 4)),
        (8, 16, 9, (1, 1)),
        (509, 1, 36, (34, 15)),
        (1018, 2, 300, (255, 2)),
        (10**11, 8, 291, (291, 42_955_327)),
    ],
)
def test_the_published_batch_is_divided_into_the_fewest_micro_batches(total, gpus, largest, shared):
    assert divide_batch(total, gpus, largest) == shared
