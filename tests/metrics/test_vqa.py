"""VQA accuracy, with cases worked by hand from the rules of the official evaluation."""

import doctest

import pytest

from metrics import vqa


def test_the_examples_in_the_docstrings_hold():
    result = doctest.testmod(vqa)
    assert result.attempted > 0
    assert result.failed == 0


@pytest.mark.parametrize(
    ("same", "expected"),
    # Of the annotators who gave the answer, each has one fewer among the other nine than those who did not.
    [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (9, 1.0)],
)
def test_accuracy_is_averaged_over_annotators_left_out_in_turn(same, expected):
    answers = ["cat"] * same + [f"dog {index}" for index in range(10 - same)]
    assert vqa.soft_accuracy("cat", answers) == pytest.approx(expected)


def test_soft_accuracy_is_for_sets_in_which_something_can_be_right():
    assert vqa.soft_accuracy("cat", ["cat"] * 3) < 1 == vqa.soft_accuracy("cat", ["cat"] * 4)
    assert vqa.accuracy_rule([["cat"] * 4, ["dog"] * 10]) == vqa.SOFT
    assert vqa.accuracy_rule([["cat"] * 3, ["dog"] * 10]) == vqa.EXACT


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
        # A mark becomes a space ...
        ("black/white", "black white"),
        ("t-shirt", "t shirt"),
        # ... but nothing beside a space, everywhere in the answer, and that mark only,
        ("t-shirt - red/blue", "tshirt red blue"),
        ("cat, dog", "cat dog"),
        # ... or with a comma between digits, and every mark then.
        ("1,000", "1000"),
        ("1,000-2,000 (a/b)", "10002000 ab"),
        # Periods stay before digits only.
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


def test_only_the_first_32_periods_go_as_in_the_official_code():
    assert vqa.normalize_answer("." * 40) == "." * 8


def test_where_annotators_differ_prediction_and_answers_are_normalized_alike():
    answers = ["Two dogs."] * 5 + ["2 dogs"] * 5
    assert vqa.soft_accuracy("the two dogs", answers) == 1
    assert vqa.soft_accuracy("2 Dogs!", answers) == 1


def test_where_all_annotators_wrote_the_same_nothing_is_normalized():
    """As in the later official release; the copy in research code normalises the prediction, and "two" would be wrong."""
    assert vqa.soft_accuracy("two", ["two"] * 10) == 1
    assert vqa.soft_accuracy("2", ["two"] * 10) == 0
    assert vqa.soft_accuracy(" two\n", ["two\t"] * 10) == 1
