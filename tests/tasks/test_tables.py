"""Tables of metrics as they are printed."""

import pytest

from tasks.tables import mean_of_splits, table


def test_shares_stand_beside_chance_and_scores_have_no_sign():
    metrics = {"accuracy": 0.5, "accuracy/chance": 0.04, "CIDEr": 1.326, "CIDEr/chance": 0.1, "only": 1.0, "images": 7}
    assert table(metrics, "test").splitlines() == [
        "test      measured  chance",
        "accuracy    50.0%    4.0%",
        "CIDEr      132.6    10.0",
        "only       100.0%",
        "(7 images)",
    ]


def test_nothing_to_measure_is_said():
    assert table({"images": 7}, "test") == "test: nothing to measure"


def test_the_mean_is_that_of_the_shares_that_all_measured_splits_have():
    splits = {
        "de": {"images": 7, "recall": 0.2, "recall/chance": 0.1, 'always "rot"': 0.5},
        "fr": {"images": 9, "recall": 0.5, "recall/chance": 0.3},
        "unanswered": {"images": 3},
    }
    assert mean_of_splits(splits) == {"recall": pytest.approx(0.35), "recall/chance": pytest.approx(0.2)}


def test_one_measured_split_has_no_mean():
    assert mean_of_splits({"test": {"recall": 0.2}, "unanswered": {"images": 3}}) == {}
