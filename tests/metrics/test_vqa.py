"""VQA accuracy, with cases computed by hand from the rules of the official evaluation."""

import doctest

import pytest

from metrics import vqa


def test_the_examples_in_the_docstrings_hold():
    result = doctest.testmod(vqa)
    assert result.attempted > 0
    assert result.failed == 0


@pytest.mark.parametrize(
    ("same", "expected"),
    # For an annotator who gave the answer, the other nine contain it one time less than for an annotator who did not.
    [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (9, 1.0)],
)
def test_accuracy_is_averaged_over_leaving_out_each_annotator(same, expected):
    answers = ["cat"] * same + [f"dog {index}" for index in range(10 - same)]
    assert vqa.soft_accuracy("cat", answers) == pytest.approx(expected)


def test_soft_accuracy_needs_answers_that_can_get_full_marks():
    assert vqa.soft_accuracy("cat", ["cat"] * 3) < 1 == vqa.soft_accuracy("cat", ["cat"] * 4)
    assert vqa.accuracy_type([["cat"] * 4, ["dog"] * 10]) == vqa.SOFT
    assert vqa.accuracy_type([["cat"] * 3, ["dog"] * 10]) == vqa.EXACT


@pytest.mark.parametrize(
    ("answer", "normalized"),
    [
        ("Yes.", "yes"),
        ("the red Bus", "red bus"),
        ("a", ""),
        ("an apple a day", "apple day"),
        ("None", "0"),
        ("zero", "0"),
        ("ten or eleven", "10 or eleven"),
        # A punctuation mark becomes a space ...
        ("black/white", "black white"),
        ("t-shirt", "t shirt"),
        # ... but is removed if it is next to a space anywhere in the answer. This applies only to that mark,
        ("t-shirt - red/blue", "tshirt red blue"),
        ("cat, dog", "cat dog"),
        # ... or to every mark if there is a comma between digits.
        ("1,000", "1000"),
        ("1,000-2,000 (a/b)", "10002000 ab"),
        # Periods are only kept before digits.
        ("2.50", "2.50"),
        (".5", ".5"),
        ("p.m.", "pm"),
        ("no. 5", "no 5"),
        # Marks that are not in the table.
        ("5:30", "5:30"),
        ("cat's", "cat's"),
        ("$5 & 10%", "$5 & 10%"),
        # Contractions.
        ("dont", "don't"),
        ("ISNT it", "isn't it"),
        ("couldnt've", "couldn't've"),
        ("couldn'tve", "couldn't've"),
        ("couldntve", "couldntve"),
        ("somebody'd", "somebodyd"),
        ("shes", "shes"),
        ("  two\u00a0  dogs ", "2 dogs"),
    ],
)
def test_answers_are_normalized_by_the_official_rules(answer, normalized):
    assert vqa.normalize_answer(answer) == normalized


def test_only_the_first_32_periods_are_removed_as_in_the_official_code():
    assert vqa.normalize_answer("." * 40) == "." * 8


def test_if_annotators_differ_prediction_and_answers_are_normalized():
    answers = ["Two dogs."] * 5 + ["2 dogs"] * 5
    assert vqa.soft_accuracy("the two dogs", answers) == 1
    assert vqa.soft_accuracy("2 Dogs!", answers) == 1


def test_if_all_annotators_agree_nothing_is_normalized():
    """This follows the later official release. Copies in research code normalise the prediction, so that "two" would be wrong."""
    assert vqa.soft_accuracy("two", ["two"] * 10) == 1
    assert vqa.soft_accuracy("2", ["two"] * 10) == 0
    assert vqa.soft_accuracy(" two\n", ["two\t"] * 10) == 1
