"""The official rules, against a second implementation and by hand."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from x2vlm.suites.cases import CaseSuite, choices_and_pairs_match, first_text_is_best, pairs_match
from x2vlm.suites.fg_ovd import first_text_is_best_or_tied
from x2vlm.suites.sugarcrepe import both_captions_beat_the_negative
from x2vlm.suites.suite import SCORES, Judged, table

GRID = [np.array(values, float) for values in itertools.product((0, 1, 2), repeat=4)]
"""All scores of two images and two texts, with ties."""


@pytest.mark.parametrize("scores", GRID, ids=str)
def test_pairs_as_in_the_equations_of_winoground(scores):
    c0_i0, c1_i0, c0_i1, c1_i1 = scores
    text = c0_i0 > c1_i0 and c1_i1 > c0_i1
    image = c0_i0 > c0_i1 and c1_i1 > c1_i0
    expected = {"text": text, "image": image, "group": text and image}
    assert pairs_match(scores.reshape(2, 2)) == expected
    right = [c0_i0 > c1_i0, c1_i1 > c0_i1]
    assert choices_and_pairs_match(scores.reshape(2, 2)) == {"accuracy": np.mean(right), **expected}


@pytest.mark.parametrize(
    ("row", "strict", "lenient"), [([3, 1, 2], 1, 1), ([2, 2, 1], 0, 1), ([1, 2], 0, 0), ([-5.0, -6.0], 1, 1)]
)
def test_a_tie_is_wrong_but_for_fg_ovd(row, strict, lenient):
    scores = np.array([row], float)
    assert first_text_is_best(scores)["accuracy"] == strict
    assert first_text_is_best_or_tied(scores)["accuracy"] == lenient


@pytest.mark.parametrize(
    ("row", "both", "first", "second"),
    [([2, 3, 1], 1, 1, 1), ([2, 0, 1], 0, 1, 0), ([0, 2, 1], 0, 0, 1), ([1, 2, 1], 0, 0, 1)],
)
def test_both_captions_have_to_beat_the_negative(row, both, first, second):
    assert both_captions_beat_the_negative(np.array([row], float)) == {"both": both, "first": first, "second": second}


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


def test_micro_and_macro_means():
    suite = a_suite(
        of_cases=("micro", ("a", "b")), of_kinds=("macro", ("a", "b")), every=("micro", ()), half=("macro", ("a", "c"))
    )
    found = suite.results(judged(["a", "a", "a", "b"], [True, True, False, False]), draws=0)["matching"]
    assert {result.row: result.value for result in found} == pytest.approx(
        {"a": 2 / 3, "b": 0, "of_cases": 1 / 2, "of_kinds": 1 / 3, "every": 1 / 2}
    )  # the user did not choose the kind c, so that "half" is unknown
    assert all(result.text_only == 0 and result.interval is None and result.chance == 0.5 for result in found)


def test_a_mean_over_parts_counts_each_part_alike():
    examples = judged(["a"] * 4, [True, True, True, False], ["on", "on", "on", "under"])
    _, mean = a_suite(mean=("parts", ("a",))).results(examples, draws=0)["cosine"]
    assert mean.value == 0.5


def test_intervals_cover_images_that_are_drawn_together():
    """50 images with two cases each: the interval is as wide as for 50 independent cases."""
    examples = judged(
        ["a"] * 100, [number // 2 < 25 for number in range(100)], groups=[number // 2 for number in range(100)]
    )
    (result,) = a_suite().results(examples, draws=2000)["both"]
    half = 1.96 * np.sqrt(0.25 / 50)
    assert result.interval == pytest.approx((0.5 - half, 0.5 + half), abs=0.03)


def test_the_table_has_each_score_and_the_paper():
    suite = a_suite()
    examples = replace(judged(["a", "a", "a"], [True, True, False]), notes=["something was skipped"])
    lines = table(suite, suite.results(examples, draws=0), examples).splitlines()
    rows = [line.split() for line in lines if line.startswith("a: accuracy")]
    assert rows == [["a:", "accuracy", "66.7", "0.0", "66.7", "50.0"]] * len(SCORES)
    assert lines[0] == "a suite: 3 examples"
    assert lines[-2:] == ["cite: a paper", "note: something was skipped"]
