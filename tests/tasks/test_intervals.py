"""Bootstrap intervals of the tasks: which metrics have scores per example, how these scores are grouped, and when intervals are
computed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tasks import evaluation as evaluation_module
from tasks.config import PretrainConfig
from tasks.inference import evaluating
from tasks.pretrain import PretrainTask
from tasks.run import run_script
from tests.tasks.painted import KINDS, ROOT, measured, task_of
from utils.config import load_config

GROUPS = {"retrieval": 7, "nlvr": 7, "grounding": 7, "vqa": 7, "captioning": 7}
"""Images of the test split, or sentences for NLVR. Each has one or more captions, statements, phrases or questions."""

WITHOUT = {"captioning": ("BLEU",)}
"""Prefixes of metrics that are not means over the model's examples."""


@pytest.mark.parametrize("task", KINDS)
def test_a_metric_is_the_mean_of_scores_grouped_by_image_or_sentence(task, overrides):
    metrics = [metric for metric in measured(task_of(task, overrides)).metrics if metric.unit != "count"]
    with_scores = [metric for metric in metrics if metric.scores]
    bare = [metric.name for metric in metrics if not metric.scores]
    assert all(any(start in name for start in WITHOUT.get(task, ())) for name in bare), bare
    assert with_scores
    for metric in with_scores:
        assert np.mean([scores.mean() for scores in metric.scores]) == pytest.approx(metric.value), metric.name
    # Grains of grounding are on different images. All other metrics are over all groups.
    assert max(len(set(scores.groups)) for metric in with_scores for scores in metric.scores) == GROUPS[task]


def test_pre_training_has_scores_of_images(tiny_overrides):
    task = PretrainTask.build(load_config(ROOT / "configs/demo/pretrain.yaml", tiny_overrides, PretrainConfig))
    with evaluating(task.model, "fp32"):
        metrics = [metric for metric in task.evaluator().evaluate().metrics if metric.unit != "count"]
    assert len(metrics) >= 7
    for metric in metrics:
        (scores,) = metric.scores
        assert scores.mean() == pytest.approx(metric.value), metric.name
        assert 1 < len(set(scores.groups)) <= 8, metric.name


def start(output: Path, overrides: list[str], *flags: str) -> dict[str, dict[str, object]]:
    """Makes a retrieval run in this process and returns the metrics of its test split."""
    config = str(ROOT / "configs/demo/retrieval.yaml")
    assert run_script(["--config", config, "--output", str(output), *flags, *overrides], "retrieval") == 0
    return json.loads((output / "evaluation.json").read_text())["test"]


@pytest.mark.slow
def test_a_finished_run_can_be_evaluated_again_with_intervals(overrides, tmp_path, capsys, monkeypatch):
    """Intervals are only computed for the report, do not change other values, and need no training."""
    drawn, plain = [], evaluation_module.interval
    monkeypatch.setattr(evaluation_module, "interval", lambda *arguments: drawn.append(arguments) or plain(*arguments))
    tiny = overrides("retrieval")
    before = start(tmp_path / "run", tiny)
    assert drawn == [] and all("interval" not in metric for metric in before.values())
    assert "95% interval" not in capsys.readouterr().out
    options = [*tiny, "evaluation.bootstrap=50"]
    after = start(tmp_path / "run", options, "--resume", "--evaluate")
    assert "95% interval" in capsys.readouterr().out
    assert {draws for _, draws, _ in drawn} == {50}
    low, high = after["mean recall"]["interval"]
    assert low <= before["mean recall"]["value"] <= high and low < high
    intervals = {name: metric.pop("interval", None) for name, metric in after.items()}
    assert after == before
    drawn.clear()
    at_once = start(tmp_path / "at_once", options)
    assert {name: metric.get("interval") for name, metric in at_once.items()} == intervals
    assert len(drawn) == len(at_once), "once per metric, and not in the three validations"
    start(tmp_path / "at_once", tiny, "--resume")
