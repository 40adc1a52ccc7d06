"""The official rules, against a second implementation and by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from x2vlm.suites.cases import Case, Picture, Suite, choices_and_pairs_match, first_text_is_best, pairs_match
from x2vlm.suites.fg_ovd import rank_of_first_text
from x2vlm.suites.results import results_of, table
from x2vlm.suites.sugarcrepe import both_captions_beat_the_negative

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
    assert rank_of_first_text(scores)["accuracy"] == lenient


@pytest.mark.parametrize(
    ("row", "both", "first", "second"),
    [([2, 3, 1], 1, 1, 1), ([2, 0, 1], 0, 1, 0), ([0, 2, 1], 0, 0, 1), ([1, 2, 1], 0, 0, 1)],
)
def test_both_captions_have_to_beat_the_negative(row, both, first, second):
    assert both_captions_beat_the_negative(np.array([row], float)) == {"both": both, "first": first, "second": second}


def a_suite(**changes) -> Suite:
    settings = {
        "title": "a suite",
        "paper": "a paper",
        "published_at": "a page",
        "read": lambda folder: [],
        "rule": first_text_is_best,
        "chance": {"accuracy": 0.5},
    }
    return Suite(**{**settings, **changes})


def case(kind: str, part: str = "", image: str = "a.png") -> Case:
    return Case(kind, (Picture(image),), ("right", "wrong"), part)


RIGHT, WRONG = np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]])


def results(suite: Suite, cases: list[Case], right: list[bool], draws: int = 0) -> dict:
    each = [RIGHT if one else WRONG for one in right]
    every = dict.fromkeys(("cosine", "matching", "both"), each)
    looks = {"model": every, "text only": dict.fromkeys(every, [WRONG] * len(each)), "image only": every}
    found = results_of(suite, cases, looks, draws=draws)
    return {result.name: result for result in found["matching"]}


def test_micro_and_macro_means():
    summaries = {
        "of cases": ("micro", ("a", "b")),
        "of kinds": ("macro", ("a", "b")),
        "all": ("micro", ()),
        "half": ("macro", ("a", "c")),
    }
    cases = [case("a"), case("a"), case("a"), case("b")]
    found = results(a_suite(summaries=summaries), cases, [True, True, False, False])
    assert {name: result.value for name, result in found.items()} == pytest.approx(
        {
            "a: accuracy": 2 / 3,
            "b: accuracy": 0,
            "of cases: accuracy": 1 / 2,
            "of kinds: accuracy": 1 / 3,
            "all: accuracy": 1 / 2,
        }
    )  # "half" has a kind that the user did not choose
    assert found["a: accuracy"].text_only == 0
    assert found["a: accuracy"].interval is None


def test_a_mean_over_parts_counts_each_part_alike():
    cases = [case("a", "on"), case("a", "on"), case("a", "on"), case("a", "under")]
    assert results(a_suite(over_parts=True), cases, [True, True, True, False])["a: accuracy"].value == 0.5


def test_intervals_cover_images_that_are_drawn_together():
    """50 images with two cases each: the interval is that of 50 draws, not of 100."""
    cases = [case("a", image=f"{number // 2}.png") for number in range(100)]
    right = [number // 2 < 25 for number in range(100)]
    low, high = results(a_suite(), cases, right, draws=2000)["a: accuracy"].interval
    half = 1.96 * np.sqrt(0.25 / 50)
    assert (low, high) == pytest.approx((0.5 - half, 0.5 + half), abs=0.03)


def test_the_table_has_each_score_and_the_sources():
    cases = [case("a"), case("a")]
    each = [RIGHT, WRONG]
    every = dict.fromkeys(("cosine", "matching", "both"), each)
    suite = a_suite()
    text = table(
        suite, results_of(suite, cases, dict.fromkeys(("model", "text only", "image only"), every), draws=0), 2
    )
    assert text.count("a: accuracy") == 3
    assert "cite: a paper" in text
