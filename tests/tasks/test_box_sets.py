"""Metrics for sets of boxes, with hand-made predictions."""

from __future__ import annotations

import numpy as np
import pytest

from dataset.media.sources import ImageSource
from dataset.tasks.grounding import Phrase
from metrics.box_sets import ScoredBoxes
from tasks.box_sets import EXACT, MOST_PROBABLE, SINGLE, evaluate_sets, panel_of_set, true_boxes
from tasks.grounding import evaluate_phrases

SIZE = (200, 100)
LEFT, RIGHT, LOW = (10.0, 10.0, 40.0, 40.0), (120.0, 20.0, 50.0, 30.0), (60.0, 60.0, 40.0, 30.0)


def phrase(text: str, *boxes: tuple[float, float, float, float]) -> Phrase:
    return Phrase(text, ImageSource(f"{text}.png"), boxes, SIZE, "phrase")


def found(*boxes: tuple[tuple[float, float, float, float], float]) -> ScoredBoxes:
    relative = true_boxes(phrase("", *(box for box, _ in boxes)))
    return ScoredBoxes(relative, np.array([score for _, score in boxes]))


ITEMS = [
    phrase("absent, none found"),
    phrase("absent, one found"),
    phrase("one, found", LEFT),
    phrase("one, found with another", LEFT),
    phrase("one, only below the threshold", RIGHT),
    phrase("two, found", LEFT, RIGHT),
    phrase("two, one found", LEFT, RIGHT),
    phrase("three, found", LEFT, RIGHT, LOW),
]
FOUND = [
    found((LEFT, 0.4)),
    found((LEFT, 0.9)),
    found((LEFT, 0.9), (LOW, 0.2)),
    found((LEFT, 0.9), (LOW, 0.6)),
    found((RIGHT, 0.3), (LOW, 0.2)),
    found((RIGHT, 0.8), (LEFT, 0.7), (LOW, 0.1)),
    found((LEFT, 0.7), (RIGHT, 0.45)),
    found((LOW, 0.7), (LEFT, 0.6), (RIGHT, 0.5)),
]
RIGHT_ONES = [True, False, True, False, False, True, False, True]


def test_metrics_equal_hand_computed_values():
    evaluation = evaluate_sets(ITEMS, FOUND, 0.5)
    values = evaluation.values()
    assert values["phrases"] == 8
    assert values[EXACT] == values["Pr@(F1=1) (published script)"] == 4 / 8
    assert evaluation[EXACT].chance == 2 / 8
    assert values["N-acc"] == values[f"without a box: {EXACT}"] == 1 / 2
    assert values["T-acc"] == 5 / 6
    assert values[f"with one box: {EXACT}"] == pytest.approx(1 / 3)
    assert values[f"with several boxes: {EXACT}"] == pytest.approx(2 / 3)
    assert [values[f"phrases {kind}"] for kind in ("without a box", "with one box", "with several boxes")] == [2, 3, 3]
    assert values["with one box: IoU >= 0.5 of the most probable box"] == 1.0
    assert 0 < values["AP"] <= values["AP50"] < 1
    assert [each["f1"] == 1 for each in evaluation.predictions] == RIGHT_ONES


def test_an_iou_and_a_probability_of_exactly_the_threshold_are_enough():
    """As in the evaluation of RefCOCO (``IoU >= 0.5``)."""
    items, predicted = [phrase("whole", (0, 0, 200, 100))], [found(((0, 0, 100, 100), 0.5))]
    values = evaluate_sets(items, predicted, 0.5).values()
    assert values[EXACT] == values["Pr@(F1=1) (published script)"] == values[MOST_PROBABLE] == 1
    single = evaluate_phrases(items, predicted).values()
    assert single[SINGLE] == single[f"{SINGLE} (published script)"] == 1


def test_a_lower_threshold_finds_more():
    values = evaluate_sets(ITEMS, FOUND, 0.42).values()
    assert values[f"with several boxes: {EXACT}"] == 1.0


def test_predictions_are_in_pixels_in_order_of_probability():
    predictions = evaluate_sets(ITEMS, FOUND, 0.5).predictions
    assert predictions[5]["predicted"] == [list(RIGHT), list(LEFT)]
    assert predictions[5]["scores"] == [0.8, 0.7, 0.1]
    assert predictions[4]["predicted"] == [] and predictions[4]["boxes"][0] == list(RIGHT)
    assert predictions[0]["true"] == []


def test_a_panel_shows_all_boxes_and_their_number():
    prediction = evaluate_sets(ITEMS, FOUND, 0.5).predictions[6]
    panel = panel_of_set(ITEMS[6], prediction, lambda *_, **__: np.zeros((100, 200, 3), np.uint8))
    (picture,), (line,) = panel.pictures, panel.lines
    assert [box.predicted is not None for box in picture.boxes] == [True, False, False]
    assert picture.boxes[0].predicted == pytest.approx((0.05, 0.1, 0.2, 0.4))
    assert line.text == "predicted 1, true 2 · two, one found" and line.right is False


def test_phrases_with_a_single_box_have_no_separate_metrics():
    values = evaluate_sets(ITEMS[2:4], FOUND[2:4], 0.5).values()
    assert "N-acc" not in values and not [name for name in values if name.startswith("phrases with")]
    assert values[EXACT] == 0.5
