"""Evaluation of sets of boxes: phrases with several boxes, one, or none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dataset.tasks.grounding import Phrase
from metrics.bootstrap import Scores
from metrics.box_sets import ScoredBoxes, average_precision, giou, in_pixels, is_exact
from metrics.grounding import iou
from tasks.drawing import DrawnImage, ImageReader, Line, Panel, colours
from tasks.drawing.boxes import Box, PairOfBoxes
from tasks.evaluation import Evaluation, Metric, count
from tasks.finetune import name_of

EXACT = "Pr@(F1=1, IoU >= 0.5)"
SINGLE = "IoU >= 0.5"
LEGEND = "solid: predicted · dashed: true · tick: all boxes are found, and no others"
KINDS = {"without a box": range(1), "with one box": range(1, 2), "with several boxes": range(2, 10**6)}


def evaluate_sets(items: Sequence[Phrase], found: Sequence[ScoredBoxes], threshold: float) -> Evaluation:
    """Compares predicted sets with the true boxes.

    Args:
        items: the phrases.
        found: the boxes of each, in order.
        threshold: probability from which a box counts as predicted.

    Returns:
        The share of phrases whose set is exactly right, as gRefCOCO measures it, for all phrases and by their number of boxes;
        N-acc, the share of phrases without a box that get none, and T-acc, the share of others that get any; for phrases with one
        box, the share whose most probable box has IoU 0.5, as with the published head; and COCO's average precision. Chance level
        of the first: no box for any phrase.
    """
    true = [relative_boxes(item) for item in items]
    sizes = np.array([item.size for item in items], dtype=np.float64)
    images = np.array([name_of(item.image) for item in items])
    predicted = [boxes.above(threshold) for boxes in found]
    counts = np.array([len(boxes) for boxes in true])
    answered = np.array([len(boxes) > 0 for boxes in predicted])
    pairs = list(zip(predicted, true, sizes, strict=True))
    exact = np.array([is_exact(boxes, targets) for boxes, targets, _ in pairs])
    by_script = np.array(
        [is_exact(_centred(boxes, size), _centred(targets, size), giou) for boxes, targets, size in pairs]
    )

    def share(name: str, right: np.ndarray, rows: np.ndarray, chance: float | None = None) -> Metric:
        return Metric.mean_of(name, Scores(right[rows], images[rows]), chance)

    everything, absent, single = np.arange(len(items)), np.flatnonzero(counts == 0), np.flatnonzero(counts == 1)
    metrics = [
        count("phrases", len(items)),
        share(EXACT, exact, everything, float((counts == 0).mean())),
        share("Pr@(F1=1) (published script)", by_script, everything, float((counts == 0).mean())),
    ]
    if len(absent):
        metrics.append(share("N-acc", ~answered, absent))
        metrics.append(share("T-acc", answered, np.flatnonzero(counts > 0)))
    for kind, numbers in KINDS.items():
        rows = np.flatnonzero((counts >= numbers.start) & (counts < numbers.stop))
        if 0 < len(rows) < len(items):
            metrics += [share(f"{kind}: {EXACT}", exact, rows), count(f"phrases {kind}", len(rows))]
    if len(single):
        best = np.stack([found[row].best for row in single.tolist()])
        located = np.zeros(len(items), dtype=bool)
        located[single] = iou(best, np.concatenate([true[row] for row in single.tolist()])) >= 0.5
        metrics.append(share(f"with one box: {SINGLE} of the most probable box", located, single))
    if (counts > 0).any():
        mean, at_half = average_precision(found, true, sizes)
        metrics += [Metric("AP", mean, unit="score"), Metric("AP50", at_half, unit="score")]
    rule = f"boxes with a probability of at least {threshold:g}"
    metrics[1] = Metric.mean_of(EXACT, metrics[1].scores[0], metrics[1].chance, rule=rule)
    return Evaluation(
        tuple(metrics), [_prediction(*each) for each in zip(items, found, predicted, exact.tolist(), strict=True)]
    )


def relative_boxes(item: Phrase) -> np.ndarray:
    """Returns the true boxes (T, 4) as centre and size relative to the image."""
    boxes = np.array(item.boxes, dtype=np.float64).reshape(-1, 4)
    return np.concatenate([boxes[:, :2] + boxes[:, 2:] / 2, boxes[:, 2:]], axis=1) / np.tile(item.size, 2)


def panel_of_set(item: Phrase, prediction: Mapping[str, Any], read: ImageReader) -> Panel:
    """Draws a prediction: the predicted boxes, and the true ones dashed in another colour."""
    width, height = item.size
    of_predicted, of_true = colours(2)

    def relative(box: Sequence[float]) -> Box:
        x, y, w, h = box
        return x / width, y / height, w / width, h / height

    drawn = [PairOfBoxes(relative(box), None, of_predicted) for box in prediction["predicted"]]
    drawn += [PairOfBoxes(None, relative(box), of_true) for box in prediction["true"]]
    number, expected = len(prediction["predicted"]), len(prediction["true"])
    line = Line(f"{number} of {expected} · {item.text}", prediction["exact"], (of_predicted, ""))
    return Panel((DrawnImage(read(item.image, size=item.size), tuple(drawn)),), (line,))


def _centred(boxes: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Converts relative boxes to pixels; centre and size remain."""
    return boxes * np.tile(size, 2)


def _prediction(item: Phrase, found: ScoredBoxes, predicted: np.ndarray, exact: bool) -> dict[str, Any]:
    """Returns a prediction for the file, with boxes as x, y, width, height in pixels, the most probable first: all, and those
    that count as predicted."""
    size = np.array(item.size, dtype=np.float64)
    order = found.scores.argsort()[::-1]
    return {
        "image": name_of(item.image),
        "phrase": item.text,
        "predicted": in_pixels(found.boxes[order], size).round(2).tolist()[: len(predicted)],
        "boxes": in_pixels(found.boxes[order], size).round(2).tolist(),
        "scores": found.scores[order].round(4).tolist(),
        "true": [list(box) for box in item.boxes],
        "exact": exact,
    }
