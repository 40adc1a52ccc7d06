"""Tables of metrics as they are printed."""

from tasks.tables import table


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
