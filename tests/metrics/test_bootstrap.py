"""Bootstrap intervals: hand-made cases, the normal interval of independent examples, and groups that are drawn together."""

from __future__ import annotations

import doctest
import itertools

import numpy as np
import pytest

from metrics import bootstrap
from metrics.bootstrap import Scores, interval


def test_the_examples_in_the_docstrings_hold():
    result = doctest.testmod(bootstrap)
    assert result.attempted > 0 and result.failed == 0


def test_the_percentiles_are_those_of_all_possible_draws():
    """Three groups of unlike sizes have 27 draws; many random draws have the percentiles of these."""
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


def test_examples_that_are_alike_within_their_group_widen_the_interval():
    """Five equal examples a group say no more than one: the interval is sqrt(5) times as wide as if they were independent."""
    right = np.repeat(np.random.default_rng(0).random(200) < 0.7, 5)
    apart = interval([Scores(right, np.arange(1000))], 4000, seed=0)
    together = interval([Scores(right, np.repeat(np.arange(200), 5))], 4000, seed=0)
    assert (together[1] - together[0]) / (apart[1] - apart[0]) == pytest.approx(np.sqrt(5), rel=0.1)


def test_a_mean_of_means_is_drawn_over_the_same_groups():
    """Parts v and 1 - v / 2 have the mean 1 / 2 + v / 4 in every draw; drawn apart they would vary more."""
    values = np.random.default_rng(0).random(100)
    low, high = interval([Scores(values, np.arange(100))], 200, seed=0)
    both = interval([Scores(values, np.arange(100)), Scores(1 - values / 2, np.arange(100))], 200, seed=0)
    assert both == pytest.approx((0.5 + low / 4, 0.5 + high / 4))
    with pytest.raises(ValueError, match="over the same groups"):
        interval([Scores(values, np.arange(100)), Scores(values[:50], np.arange(50))], 200, seed=0)


def test_the_interval_depends_on_its_seed_alone(monkeypatch):
    scores = [Scores(np.random.default_rng(0).random(300), np.arange(300) // 3)]
    first = interval(scores, 500, seed=3)
    assert interval(scores, 500, seed=3) == first != interval(scores, 500, seed=4)
    monkeypatch.setattr(bootstrap, "CELLS", 1)
    small = interval(scores, 500, seed=3)
    assert small == pytest.approx(first, abs=0.02), "drawn in pieces"


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
def test_no_examples_no_number_or_groups_all_alike_have_no_interval(values, groups):
    """Sixty questions that are all wrong draw nothing but zeros, which is no proof that all are."""
    assert interval([Scores(np.array(values), groups)], 100, seed=0) is None


def test_a_metric_without_scores_has_no_interval():
    assert interval([], 100, seed=0) is None
    assert np.isnan(Scores(np.array([]), []).mean())
