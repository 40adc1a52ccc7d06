"""The measurement of how well a model judges boxes and phrases."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks.second_opinion import FALSE, Judged, areas, main, pairs_of, precisions
from dataset.tasks.held_out import HeldOutElement, HeldOutRecord
from metrics.calibration import Calibration, ModelCalibration
from metrics.grounding import iou
from tests.x2vlm.conftest import data, overrides, run, task  # noqa: F401 (fixtures)

OBJECTS = {"a small red star": (0.2, 0.2, 0.2, 0.2), "a large blue circle": (0.7, 0.7, 0.4, 0.3)}
RECORD = HeldOutRecord(
    "here", torch.zeros(3, 8, 8, dtype=torch.uint8), [],
    [HeldOutElement(text, box, "object") for text, box in OBJECTS.items()] + [HeldOutElement("x", (0.5, 0.5, 1, 1), "relation")],
    (64, 32),
)  # fmt: skip
ABSENT = ["a green cross", "a pink heart"]


@pytest.fixture
def pairs():
    rng = np.random.default_rng(0)
    return [pair for _ in range(40) for pair in pairs_of(RECORD, ABSENT, rng)]


def test_true_and_false_pairs_are_what_they_are_called(pairs):
    assert {pair.kind for pair in pairs} == {"true", "detected", *FALSE}
    for box, phrase, kind in pairs:
        overlap = {text: iou(np.array([box]), np.array([own]))[0] for text, own in OBJECTS.items()}
        match kind:
            case "true":
                assert overlap[phrase] > 0.999
            case "another object":
                assert overlap[phrase] < 0.5 and max(overlap.values()) > 0.999
            case "an absent phrase":
                assert phrase in ABSENT and max(overlap.values()) > 0.999
            case "a shifted box":
                assert 0 < overlap[phrase] <= 0.3
            case "one attribute exchanged":
                (own,) = (text for text in OBJECTS if overlap[text] > 0.999)
                assert sum(a != b for a, b in zip(phrase.split(), own.split(), strict=True)) == 1


def test_the_simulated_detector_has_wrong_labels_and_absent_objects(pairs):
    detected = [pair for pair in pairs if pair.kind == "detected"]
    right = [p.phrase in OBJECTS and iou(np.array([p.box]), np.array([OBJECTS[p.phrase]]))[0] >= 0.5 for p in detected]
    assert 80 < len(detected) < 110 and 0.45 < np.mean(right) < 0.7


def test_a_perfect_judge_has_the_largest_area_and_precision(pairs):
    def is_right(pair):
        own = OBJECTS.get(pair.phrase)
        return own is not None and iou(np.array([pair.box]), np.array([own]))[0] >= 0.5

    margins = np.array(
        [10.0 if is_right(pair) else -10.0 for pair in pairs_of(RECORD, ABSENT, np.random.default_rng(1))]
    )
    scores = np.stack([margins, np.zeros_like(margins)], axis=1)
    image = Judged(RECORD, pairs_of(RECORD, ABSENT, np.random.default_rng(1)), scores, scores)
    identity = Calibration((1.0, 0.0), 0.0)
    calibration = ModelCalibration(identity, identity)
    found = areas([image] * 2, calibration)
    assert all(each[:2] == [1, 1] and each[2] == 0.5 for each in found.values())
    measured = precisions([image] * 2, calibration)
    assert measured["probability"] == measured["matching"] >= measured["constant"]


def test_the_command_measures_runs(run, scenes_folder, capsys):  # noqa: F811
    arguments = {"val": scenes_folder / "val.jsonl", "test": scenes_folder / "test.jsonl"}
    assert main([run("pretrain")], **arguments) == 0
    printed = capsys.readouterr().out
    assert all(f"| {kind} |" in printed for kind in FALSE) and "| probability, with none |" in printed
    assert "absent phrases recognised" in printed
