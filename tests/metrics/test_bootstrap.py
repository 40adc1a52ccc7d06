"""Bootstrap intervals: cases made by hand, the normal interval of independent examples, and groups that are drawn as a whole."""

from __future__ import annotations

import doctest
import itertools

import numpy as np
import pytest

from metrics import bootstrap
from metrics.bootstrap import Scores, interval, paired_interval


def test_the_examples_in_the_docstrings_hold():
    result = doctest.testmod(bootstrap)
    assert result.attempted > 0 and result.failed == 0


def test_percentiles_of_many_draws_equal_those_of_all_possible_draws():
    """Three groups of different sizes have 27 possible draws, and many random draws have the same percentiles as these."""
    values, groups = np.array([0.0, 1.0, 1.0, 0.0, 1.0, 1.0]), ["a", "b", "b", "c", "c", "c"]
    of_group = {"a": [0.0], "b": [1.0, 1.0], "c": [0.0, 1.0, 1.0]}
    means = [
        np.mean([value for name in drawn for value in of_group[name]]) for drawn in itertools.product("abc", repeat=3)
    ]
    expected = np.quantile(means, [0.2, 0.8], method="inverted_cdf")
    assert expected[0] < values.mean() < expected[1]
    assert interval([Scores(values, groups)], 20_000, seed=1, level=0.6) == pytest.approx(expected)


def test_independent_examples_have_about_the_normal_interval():
    right = np.random.default_rng(0).random(1000) < 0.8
    share = right.mean()
    half = 1.96 * np.sqrt(share * (1 - share) / 1000)
    low, high = interval([Scores(right, np.arange(1000))], 4000, seed=0)
    assert low == pytest.approx(share - half, abs=0.1 * half) and high == pytest.approx(share + half, abs=0.1 * half)


def test_similar_examples_within_a_group_widen_the_interval():
    """A group of five equal examples carries as much information as one: the interval is sqrt(5) times as wide as for independent
    examples."""
    right = np.repeat(np.random.default_rng(0).random(200) < 0.7, 5)
    apart = interval([Scores(right, np.arange(1000))], 4000, seed=0)
    together = interval([Scores(right, np.repeat(np.arange(200), 5))], 4000, seed=0)
    assert (together[1] - together[0]) / (apart[1] - apart[0]) == pytest.approx(np.sqrt(5), rel=0.1)


def test_a_mean_of_means_is_drawn_over_the_same_groups():
    """v and 1 - v / 2 have the mean 1 / 2 + v / 4 in every draw. If they were drawn separately, the mean would vary more."""
    values = np.random.default_rng(0).random(100)
    low, high = interval([Scores(values, np.arange(100))], 200, seed=0)
    both = interval([Scores(values, np.arange(100)), Scores(1 - values / 2, np.arange(100))], 200, seed=0)
    assert both == pytest.approx((0.5 + low / 4, 0.5 + high / 4))
    with pytest.raises(ValueError, match="the same groups"):
        interval([Scores(values, np.arange(100)), Scores(values[:50], np.arange(50))], 200, seed=0)


def test_the_interval_depends_only_on_its_seed(monkeypatch):
    scores = [Scores(np.random.default_rng(0).random(300), np.arange(300) // 3)]
    first = interval(scores, 500, seed=3)
    assert interval(scores, 500, seed=3) == first != interval(scores, 500, seed=4)
    monkeypatch.setattr(bootstrap, "MAX_DRAWN", 1)
    small = interval(scores, 500, seed=3)
    assert small == pytest.approx(first, abs=0.02), "the draws are made in pieces"


@pytest.mark.parametrize(
    ("values", "groups"),
    [
        ([], []),
        ([1.0, 0.0], ["a", "a"]),
        ([1.0, float("nan")], ["a", "b"]),
        ([0.1, 0.1, 0.1], ["a", "b", "c"]),
        ([0.0, 1.0, 1.0, 0.0], ["a", "a", "b", "b"]),
    ],
)
def test_there_is_no_interval_without_examples_or_variation(values, groups):
    """If sixty answers are all wrong, every draw is zero, which does not prove that all other answers are wrong."""
    assert interval([Scores(np.array(values), groups)], 100, seed=0) is None


def test_a_metric_without_scores_has_no_interval():
    assert interval([], 100, seed=0) is None
    assert np.isnan(Scores(np.array([]), []).mean())


def test_a_difference_that_all_examples_and_seeds_share_has_an_interval_without_width():
    assert paired_interval(np.full((3, 8), 0.5), draws=20) == (0.5, 0.5)
    low, high = paired_interval(np.random.default_rng(0).normal(0.1, 1, (3, 200)), draws=2000)
    assert low < 0.1 < high
