"""The official rules are compared with a second implementation and with hand-computed values."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from metrics.bootstrap import wilson_interval
from x2vlm.suites.cases import CaseSuite, choices_and_pairs_match, expected_value, first_text_is_best, pairs_match
from x2vlm.suites.sugarcrepe import captions_beat_the_negative, captions_resemble_each_other
from x2vlm.suites.suite import SCORES, Judged, Published, table

GRID = [np.array(values, float) for values in itertools.product((0, 1, 2), repeat=4)]
"""All scores of two images and two texts, with ties."""


@pytest.mark.parametrize("scores", GRID, ids=str)
def test_pairs_are_scored_as_in_the_equations_of_winoground(scores):
    c0_i0, c1_i0, c0_i1, c1_i1 = scores
    text = c0_i0 > c1_i0 and c1_i1 > c0_i1
    image = c0_i0 > c0_i1 and c1_i1 > c1_i0
    expected = {"text": text, "image": image, "group": text and image}
    assert pairs_match(scores.reshape(2, 2)) == expected
    right = [c0_i0 > c1_i0, c1_i1 > c0_i1]
    assert choices_and_pairs_match(scores.reshape(2, 2)) == {"accuracy": np.mean(right), **expected}


@pytest.mark.parametrize(("row", "right"), [([3, 1, 2], 1), ([2, 2, 1], 0), ([1, 2], 0), ([-5.0, -6.0], 1)])
def test_a_tie_is_wrong(row, right):
    """This includes FG-OVD, whose evaluation/ranks.py ranks a description after all others with the same score."""
    assert first_text_is_best(np.array([row], float))["accuracy"] == right


@pytest.mark.parametrize(
    ("row", "both", "first", "second"),
    [([2, 3, 1], 1, 1, 1), ([2, 0, 1], 0, 1, 0), ([0, 2, 1], 0, 0, 1), ([1, 2, 1], 0, 0, 1)],
)
def test_both_captions_must_beat_the_negative(row, both, first, second):
    assert captions_beat_the_negative(np.array([row], float)) == {"ITT": both, "first": first, "second": second}


@pytest.mark.parametrize(
    ("same", "first_wrong", "second_wrong", "right"), [(3, 1, 2, 1), (3, 3, 2, 0), (2, 1, 3, 0), (0, -1, -2, 1)]
)
def test_the_captions_must_be_most_similar_to_each_other(same, first_wrong, second_wrong, right):
    """As in VLMs/test_XVLM_4M.py of SugarCrepe++."""
    cosines = np.array([[1, same, first_wrong], [same, 1, second_wrong], [first_wrong, second_wrong, 1]], float)
    assert captions_resemble_each_other(cosines) == {"TOT": right}


@pytest.mark.parametrize("count", [2, 3, 5, 11])
def test_tied_texts_count_by_chance(count):
    assert expected_value(first_text_is_best, np.full((1, count), 0.3), 1) == {"accuracy": pytest.approx(1 / count)}


def test_tied_captions_of_sugarcrepe_pp_and_winoground_count_by_chance():
    found = expected_value(captions_beat_the_negative, np.zeros((1, 3)), 1)
    assert found == pytest.approx({"ITT": 1 / 3, "first": 1 / 2, "second": 1 / 2})
    for scores, tied, expected in [
        ([[1, 1], [2, 2]], 1, {"text": 1 / 4, "image": 0, "group": 0}),
        ([[1, 2], [1, 2]], 0, {"text": 0, "image": 1 / 4, "group": 0}),
    ]:
        assert expected_value(pairs_match, np.array(scores, float), tied) == pytest.approx(expected)


def test_only_ties_along_the_axis_count_by_chance():
    scores = np.array([[5.0, 1e-12]])
    assert expected_value(first_text_is_best, scores, 0) == {"accuracy": 1}
    assert expected_value(first_text_is_best, -scores, 0) == {"accuracy": 0}


def a_suite(**summaries) -> CaseSuite:
    return CaseSuite(
        title="a suite",
        paper="a paper",
        published_at="a page",
        measures=("accuracy",),
        file_of={"a": "a.json"},
        cases=lambda kind, path: [],
        rule=first_text_is_best,
        chance={"accuracy": 0.5},
        summaries=summaries,
    )


def judged(
    kinds: list[str], right: list[bool], parts: list[str] | None = None, groups: list[int] | None = None
) -> Judged:
    values = np.array(right, float)[:, None]
    looks = {"model": values, "text only": np.zeros_like(values), "image only": values}
    groups = list(range(len(kinds))) if groups is None else groups
    return Judged(
        kinds, list(map(str, groups)), dict.fromkeys(SCORES, looks), {"accuracy": 0.5}, parts or [""] * len(kinds)
    )


def test_micro_and_macro_means_are_computed():
    suite = a_suite(
        of_cases=("micro", ("a", "b")), of_kinds=("macro", ("a", "b")), every=("micro", ()), half=("macro", ("a", "c"))
    )
    found = suite.results(judged(["a", "a", "a", "b"], [True, True, False, False]), draws=0)["matching"]
    assert {result.row: result.value for result in found} == pytest.approx(
        {"a": 2 / 3, "b": 0, "of_cases": 1 / 2, "of_kinds": 1 / 3, "every": 1 / 2}
    )  # the user did not choose kind c, so "half" is unknown
    assert all(result.text_only == 0 and result.interval is None and result.chance == 0.5 for result in found)


def test_a_mean_over_parts_weights_each_part_equally():
    examples = judged(["a"] * 4, [True, True, True, False], ["on", "on", "on", "under"])
    _, mean = a_suite(mean=("parts", ("a",))).results(examples, draws=0)["cosine"]
    assert mean.value == 0.5


def test_intervals_treat_the_cases_of_an_image_as_a_group():
    """400 images with two cases each: the interval is as wide as for 400 independent cases."""
    examples = judged(
        ["a"] * 800, [number // 2 < 200 for number in range(800)], groups=[number // 2 for number in range(800)]
    )
    (result,) = a_suite().results(examples, draws=4000)["sum"]
    half = 1.96 * np.sqrt(0.25 / 400)  # with 1.645, as in 90% intervals, it would be lower by 0.008
    assert result.interval == pytest.approx((0.5 - half, 0.5 + half), abs=0.004)


def test_intervals_of_means_over_parts_draw_the_parts():
    """There are fifteen classes of three images, which are all correct or all wrong, so there are 15 independent values instead
    of 45."""
    classes = [f"class {number // 3}" for number in range(45)]
    examples = judged(["all"] * 45, [number // 3 < 4 for number in range(45)], parts=classes)
    _, mean = a_suite(mean=("parts", ("all",))).results(examples, draws=2000)["sum"]
    half = 1.96 * np.sqrt(4 / 15 * 11 / 15 / 15)
    assert mean.value == pytest.approx(4 / 15)
    assert mean.interval == pytest.approx((4 / 15 - half, 4 / 15 + half), abs=0.05)


def test_an_interval_never_has_zero_width():
    """Five correct cases do not prove that all are correct (Wilson's interval)."""
    (result,) = a_suite().results(judged(["a"] * 5, [True] * 5), draws=100)["sum"]
    assert result.interval == pytest.approx((0.5655, 1), abs=1e-4)
    one_image = judged(["a"] * 5, [False] * 5, groups=[0] * 5)
    (result,) = a_suite().results(one_image, draws=100)["sum"]
    assert result.interval == pytest.approx((0, 0.7935), abs=1e-4)
    assert result.count == 5


def test_the_wilson_interval_equals_published_examples():
    """Newcombe 1998, table I: 81 of 263 and 15 of 148."""
    assert wilson_interval(81 / 263, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(15 / 148, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)


def test_the_table_has_each_score_and_the_published_result():
    suite = replace(
        a_suite(half=("macro", ("a", "c"))),
        published=(Published("one", {"a: accuracy": 70}, "page 1"), Published("human", {"a: accuracy": 99}, "page 1")),
    )
    examples = replace(judged(["a", "a", "a"], [True, True, False]), notes=["something was skipped"])
    lines = table(suite, suite.results(examples, draws=0), examples).splitlines()
    rows = [line.split() for line in lines if line.startswith("a: accuracy")]
    assert rows[:-1] == [["a:", "accuracy", "3", "66.7", "0.0", "66.7", "50.0", "70.0"]] * len(SCORES)
    assert rows[-1] == ["a:", "accuracy", "70.0", "99.0"]
    assert lines[0] == "a suite: 3 examples"
    assert lines[-3:] == [
        "cite: a paper",
        "note: something was skipped",
        "note: half is missing, since no case is of kind c",
    ]
