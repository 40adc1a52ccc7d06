"""Evaluates sets of boxes, for phrases that refer to several objects, to one, or to none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dataset.tasks.grounding import Phrase
from metrics.bootstrap import Scores
from metrics.box_sets import ScoredBoxes, average_precision, f1_score, giou, is_exact, pixel_boxes
from metrics.grounding import iou
from tasks.drawing import DrawnImage, ImageReader, Line, Panel, colours
from tasks.drawing.boxes import Box, PairOfBoxes
from tasks.evaluation import Evaluation, Metric, count
from tasks.finetune import name_of

EXACT = "Pr@(F1=1, IoU >= 0.5)"
SINGLE = "IoU >= 0.5"
MOST_PROBABLE = f"with one box: {SINGLE} of the most probable box"
LEGEND = "solid: predicted · dashed: true · tick: exactly the true boxes are predicted"
KINDS = {"without a box": range(1), "with one box": range(1, 2), "with several boxes": range(2, 10**6)}


def evaluate_sets(items: Sequence[Phrase], scored: Sequence[ScoredBoxes], threshold: float) -> Evaluation:
    """Compares predicted sets with the ground-truth boxes.

    Args:
        items: the phrases.
        scored: the scored boxes of each phrase, in order.
        threshold: minimum probability of a predicted box.

    Returns:
        The following metrics:

        - the fraction of phrases whose set is exactly correct, as in gRefCOCO, for all phrases and by number of ground-truth
          boxes; the chance level is the result if no box is predicted for any phrase;
        - N-acc, the fraction of phrases without a box for which no box is predicted;
        - T-acc, the fraction of the other phrases for which at least one box is predicted;
        - for phrases with one box, the fraction whose most probable box has an IoU of at least 0.5, as with the published head;
        - COCO's average precision.
    """
    true = [true_boxes(item) for item in items]
    sizes = np.array([item.size for item in items], dtype=np.float64)
    images = np.array([name_of(item.image) for item in items])
    predicted = [boxes.above(threshold) for boxes in scored]
    counts = np.array([len(boxes) for boxes in true])
    answered = np.array([len(boxes) > 0 for boxes in predicted])
    pairs = list(zip(predicted, true, sizes, strict=True))
    f1 = [f1_score(boxes, targets) for boxes, targets, _ in pairs]
    exact = np.array(f1) == 1
    exact_by_script = np.array(
        [is_exact(_in_pixels(boxes, size), _in_pixels(targets, size), giou) for boxes, targets, size in pairs]
    )

    rule = f"boxes with a probability of at least {threshold:g}"

    def fraction(name: str, right: np.ndarray, rows: np.ndarray, chance: float | None = None) -> Metric:
        return Metric.mean_of(name, Scores(right[rows], images[rows]), chance, rule=rule if name == EXACT else None)

    all_rows, absent, single = np.arange(len(items)), np.flatnonzero(counts == 0), np.flatnonzero(counts == 1)
    metrics = [
        count("phrases", len(items)),
        fraction(EXACT, exact, all_rows, float((counts == 0).mean())),
        fraction("Pr@(F1=1) (published script)", exact_by_script, all_rows, float((counts == 0).mean())),
    ]
    if len(absent):
        metrics.append(fraction("N-acc", ~answered, absent))
        metrics.append(fraction("T-acc", answered, np.flatnonzero(counts > 0)))
    for kind, numbers in KINDS.items():
        rows = np.flatnonzero((counts >= numbers.start) & (counts < numbers.stop))
        if 0 < len(rows) < len(items):
            metrics += [fraction(f"{kind}: {EXACT}", exact, rows), count(f"phrases {kind}", len(rows))]
    if len(single):
        located = np.zeros(len(items), dtype=bool)
        for row in single.tolist():
            best = scored[row].best
            located[row] = len(best) > 0 and bool((iou(best, true[row]) >= 0.5)[0])
        metrics.append(fraction(MOST_PROBABLE, located, single))
    if (counts > 0).any():
        mean, at_half = average_precision(scored, true, sizes)
        metrics += [Metric("AP", mean, unit="score"), Metric("AP50", at_half, unit="score")]
    return Evaluation(tuple(metrics), [_prediction(*each) for each in zip(items, scored, predicted, f1, strict=True)])


def true_boxes(item: Phrase) -> np.ndarray:
    """Returns the ground-truth boxes (T, 4) as centre and size relative to the image."""
    boxes = np.array(item.boxes, dtype=np.float64).reshape(-1, 4)
    return np.concatenate([boxes[:, :2] + boxes[:, 2:] / 2, boxes[:, 2:]], axis=1) / np.tile(item.size, 2)


def panel_of_set(item: Phrase, prediction: Mapping[str, Any], read: ImageReader) -> Panel:
    """Draws the predicted boxes with solid lines, and the ground-truth boxes with dashed lines in a different colour."""
    width, height = item.size
    predicted_colour, true_colour = colours(2)

    def relative(box: Sequence[float]) -> Box:
        x, y, w, h = box
        return x / width, y / height, w / width, h / height

    drawn = [PairOfBoxes(relative(box), None, predicted_colour) for box in prediction["predicted"]]
    drawn += [PairOfBoxes(None, relative(box), true_colour) for box in prediction["true"]]
    line = Line(summary_of(prediction), prediction["f1"] == 1, (predicted_colour, ""))
    return Panel((DrawnImage(read(item.image, size=item.size), tuple(drawn)),), (line,))


def summary_of(prediction: Mapping[str, Any]) -> str:
    """Summarises a prediction in one line: the number of predicted boxes, the number of ground-truth boxes, and the phrase."""
    return f"predicted {len(prediction['predicted'])}, true {len(prediction['true'])} · {prediction['phrase']}"


def _in_pixels(boxes: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Converts boxes, given as centre and size relative to the image, to pixels."""
    return boxes * np.tile(size, 2)


def _prediction(item: Phrase, scored: ScoredBoxes, predicted: np.ndarray, f1: float) -> dict[str, Any]:
    """Returns a prediction for the predictions file, with all scored boxes and the predicted boxes. Boxes are x, y, width, height
    in pixels, most probable first."""
    size = np.array(item.size, dtype=np.float64)
    order = scored.scores.argsort()[::-1]
    return {
        "image": name_of(item.image),
        "phrase": item.text,
        "predicted": pixel_boxes(scored.boxes[order], size).round(2).tolist()[: len(predicted)],
        "boxes": pixel_boxes(scored.boxes[order], size).round(2).tolist(),
        "scores": scored.scores[order].tolist(),
        "true": [list(box) for box in item.boxes],
        "f1": round(f1, 4),
    }
