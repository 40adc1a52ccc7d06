"""Evaluations as they are printed and written."""

import json

import numpy as np
import pytest

from metrics.bootstrap import Scores
from tasks.evaluation import Evaluation, Metric, count, mean_of_splits, write_evaluations
from tasks.facts import Facts, MeasuredWeights
from tests.messages import OneLine


def test_percentages_are_shown_with_chance_and_scores_without_a_percent_sign():
    metrics = (
        Metric("accuracy", 0.5, 0.04),
        Metric("CIDEr", 1.326, 0.1, "score"),
        Metric("only", 1.0),
        count("images", 7),
    )
    assert Evaluation(metrics).table("test").splitlines() == [
        "test      measured  chance",
        "accuracy    50.0%    4.0%",
        "CIDEr      132.6    10.0",
        "only       100.0%",
        "(7 images)",
    ]


def test_an_evaluation_without_splits_is_reported():
    assert Evaluation((count("images", 7),)).table("test") == "test: nothing to measure"


def test_the_mean_covers_metrics_that_all_measured_splits_have():
    german = Evaluation((count("images", 7), Metric("recall", 0.2, 0.1), Metric("lost", 0.5)))
    french = Evaluation((count("images", 9), Metric("recall", 0.5, 0.3)))
    mean = mean_of_splits([german, french, Evaluation((count("images", 3),))])
    assert mean.values() == {"recall": pytest.approx(0.35)}
    assert mean["recall"].chance == pytest.approx(0.2)


def test_a_single_measured_split_has_no_mean():
    assert mean_of_splits([Evaluation((Metric("recall", 0.2),)), Evaluation((count("images", 3),))]) is None


def test_a_chance_level_that_some_splits_lack_is_omitted_from_the_mean():
    mean = mean_of_splits([Evaluation((Metric("recall", 0.2, 0.1),)), Evaluation((Metric("recall", 0.4),))])
    assert mean.metrics == (Metric("recall", pytest.approx(0.3)),)


def test_a_missing_metric_is_nan():
    with pytest.raises(KeyError, match="recall"):
        Evaluation(())["recall"]


def test_nan_is_written_as_null_and_printed_as_none(tmp_path):
    evaluation = Evaluation((Metric("recall", float("nan"), 0.1),))
    write_evaluations(tmp_path, {"test": evaluation})
    assert json.loads((tmp_path / "evaluation.json").read_text())["test"]["recall"]["value"] is None
    assert evaluation.table("test").splitlines()[1] == "recall     none   10.0%"


def test_the_file_has_value_chance_and_unit(tmp_path):
    write_evaluations(tmp_path, {"test": Evaluation((count("images", 7), Metric("recall", 0.2, 0.1)))})
    assert json.loads((tmp_path / "evaluation.json").read_text()) == {
        "test": {
            "images": {"value": 7, "unit": "count"},
            "recall": {"value": 0.2, "chance": 0.1, "unit": "share"},
        }
    }


FACTS = Facts("a.jsonl [de]", MeasuredWeights("init.checkpoint runs/x", "zero-shot"))


def test_the_line_below_the_table_has_sizes_rules_files_weights_and_training():
    metrics = (count("images", 7), Metric("accuracy", 0.5, rule="exact match"), Metric("recall", 0.5))
    assert Evaluation(metrics, facts=FACTS).table("test").splitlines()[-1] == (
        "(7 images; exact match; a.jsonl [de]; init.checkpoint runs/x, zero-shot)"
    )
    assert Evaluation((count("images", 7),), facts=FACTS).table("test").splitlines() == [
        "test: nothing to measure",
        "(7 images; a.jsonl [de]; init.checkpoint runs/x, zero-shot)",
    ]


def test_published_results_are_shown_with_measured_ones(caplog):
    metrics = (Metric("accuracy", 0.5, 0.04), Metric("CIDEr", 1.326, 0.1, "score"), Metric("only", 0.25))
    evaluation = Evaluation(metrics).with_published({"accuracy": 79.2, "CIDEr": 133.6, "acuracy": 1.0}, "test")
    assert evaluation.table("test").splitlines() == [
        "test      measured  chance  published",
        "accuracy    50.0%    4.0%      79.2%",
        "CIDEr      132.6    10.0      133.6",
        "only        25.0%",
    ]
    assert evaluation["accuracy"].published == pytest.approx(0.792)
    assert OneLine("evaluation.published.test", "'acuracy'") in caplog.messages


def test_the_file_has_the_facts_and_the_published_result_of_each_metric(tmp_path):
    evaluation = Evaluation((count("images", 7), Metric("recall", 0.2, published=0.5, rule="at 1")), facts=FACTS)
    write_evaluations(tmp_path, {"test": evaluation})
    assert json.loads((tmp_path / "evaluation.json").read_text())["test"] == {
        "images": {"value": 7, "unit": "count"},
        "recall": {
            "value": 0.2,
            "unit": "share",
            "published": 0.5,
            "rule": "at 1",
            "split": "a.jsonl [de]",
            "weights": "init.checkpoint runs/x",
            "training": "zero-shot",
        },
    }


RIGHT = Scores(np.array([True, False, True, True]), ["a", "a", "b", "b"])


def test_intervals_are_computed_on_request_and_shown_with_the_value():
    metrics = (Metric.mean_of("accuracy", RIGHT, 0.5), Metric("CIDEr", 1.326, unit="score"), count("images", 2))
    evaluation = Evaluation(metrics)
    assert evaluation["accuracy"].value == 0.75
    assert evaluation.with_intervals(0, seed=0) is evaluation and evaluation["accuracy"].interval is None
    drawn = evaluation.with_intervals(200, seed=0)
    assert drawn.values() == evaluation.values()
    assert drawn["accuracy"].interval == (0.5, 1.0), "both groups are a or both are b"
    assert drawn["CIDEr"].interval is None and drawn["images"].interval is None
    assert drawn.with_published({"CIDEr": 133.6}, "test").table("test").splitlines() == [
        "test      measured  95% interval     chance  published",
        "accuracy    75.0%   [50.0, 100.0]    50.0%",
        "CIDEr      132.6                               133.6",
        "(2 images)",
    ]
    assert drawn.as_json()["accuracy"] == {"value": 0.75, "unit": "share", "interval": [0.5, 1.0], "chance": 0.5}
    assert "interval" not in drawn.as_json()["CIDEr"]


def test_an_empty_metric_and_the_mean_of_splits_have_no_interval():
    empty = Evaluation((Metric.mean_of("accuracy", Scores(np.array([]), [])),)).with_intervals(100, seed=0)
    assert np.isnan(empty["accuracy"].value) and empty["accuracy"].interval is None
    split = Evaluation((Metric.mean_of("accuracy", RIGHT),)).with_intervals(100, seed=0)
    assert mean_of_splits([split, split])["accuracy"].interval is None
