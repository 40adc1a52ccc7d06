"""Metrics for sets of boxes: gRefCOCO's F1 score and exact match, and COCO's average precision."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from metrics.finite import check_finite
from metrics.grounding import iou

Overlap = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Computes the overlaps (N,) of N pairs of boxes, each (N, 4) as (cx, cy, w, h)."""


@dataclass(frozen=True, eq=False)
class ScoredBoxes:
    """The predicted boxes of a phrase.

    Attributes:
        boxes: (K, 4), as (cx, cy, w, h).
        scores: (K,), the probability that each box belongs to the phrase.
    """

    boxes: np.ndarray
    scores: np.ndarray

    def above(self, threshold: float) -> np.ndarray:
        """Returns the boxes (B, 4) with a probability of at least ``threshold``."""
        return self.boxes[self.scores >= threshold]

    @property
    def best(self) -> np.ndarray:
        """The box with the highest probability, (1, 4), or an array of shape (0, 4) if there are no boxes."""
        return self.boxes[self.scores.argsort()[::-1][:1]]


def f1_score(predicted: np.ndarray, true: np.ndarray, overlap: Overlap = iou, threshold: float = 0.5) -> float:
    """Returns the F1 score of a predicted set, or 1 if both sets are empty. Predicted and ground-truth boxes are paired as
    described in :func:`is_exact`."""
    boxes = len(predicted) + len(true)
    return 2 * count_pairs(predicted, true, overlap, threshold) / boxes if boxes else 1.0


def is_exact(predicted: np.ndarray, true: np.ndarray, overlap: Overlap = iou, threshold: float = 0.5) -> bool:
    """Returns True if the F1 score of a predicted set is 1, that is, if each box of either set has a partner in the other set.

    As in gRefCOCO's script (``mdetr/datasets/refexp.py``), boxes are paired greedily, starting with the largest overlap, as long
    as the overlap is at least ``threshold``. For a phrase without a box, the prediction must be empty, too. The script measures
    overlap by GIoU (:func:`giou`), but gRefCOCO's paper says IoU (He et al., 2023, "GREC: generalized referring expression
    comprehension").

    >>> box = np.array([[0.5, 0.5, 1.0, 1.0]])
    >>> is_exact(box, box), is_exact(box, box[:0]), is_exact(box[:0], box[:0])
    (True, False, True)
    """
    return f1_score(predicted, true, overlap, threshold) == 1


def count_pairs(predicted: np.ndarray, true: np.ndarray, overlap: Overlap = iou, threshold: float = 0.5) -> int:
    """Returns the number of pairs formed from ``predicted`` (P, 4) and ``true`` (T, 4) boxes; see :func:`is_exact`."""
    if not len(predicted) or not len(true):
        return 0
    pairs = [np.repeat(predicted, len(true), axis=0), np.tile(true, (len(predicted), 1))]
    overlaps = overlap(*pairs).reshape(len(predicted), len(true))
    for count in range(min(overlaps.shape)):
        row, column = np.unravel_index(int(overlaps.argmax()), overlaps.shape)
        if overlaps[row, column] < threshold:
            return count
        overlaps[row, :] = overlaps[:, column] = -np.inf
    return min(overlaps.shape)


def giou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Computes the generalised IoU (N,) in -1..1 of N pairs of boxes, each (N, 4) as (cx, cy, w, h) (Rezatofighi et al.,
    2019)."""
    low = np.minimum(a[:, :2] - a[:, 2:] / 2, b[:, :2] - b[:, 2:] / 2)
    high = np.maximum(a[:, :2] + a[:, 2:] / 2, b[:, :2] + b[:, 2:] / 2)
    hull = (high - low).prod(axis=1)
    plain = iou(a, b)
    areas = a[:, 2:].prod(axis=1) + b[:, 2:].prod(axis=1)
    union = areas / (1 + plain)  # IoU = overlap / union, and overlap = areas - union
    return plain - np.divide(hull - union, hull, out=np.zeros_like(hull), where=hull > 0)


def average_precision(
    predicted: Sequence[ScoredBoxes], true: Sequence[np.ndarray], sizes: np.ndarray
) -> tuple[float, float]:
    """Computes COCO's average precision of the boxes of N phrases. Each phrase counts as an image, and there is one category.

    Args:
        predicted: predicted boxes of each phrase, relative to its image.
        true: ground-truth boxes (T, 4) of each phrase, relative to its image.
        sizes: (N, 2), width and height of each image in pixels.

    Returns:
        The mean of the average precision at IoU 0.50, 0.55, ... 0.95, and the average precision at IoU 0.50; NaN if no phrase has
        a box.
    """
    from faster_coco_eval import COCO, COCOeval_faster

    found: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index, (boxes, targets, size) in enumerate(zip(predicted, true, sizes, strict=True)):
        check_finite(boxes.boxes, "coordinates of boxes")
        for box, score in zip(pixel_boxes(boxes.boxes, size), boxes.scores.tolist(), strict=True):
            found.append({"image_id": index, "category_id": 1, "bbox": box.tolist(), "score": score})
        for box in pixel_boxes(targets, size):
            area = float(box[2] * box[3])
            annotation = {"id": len(annotations) + 1, "image_id": index, "category_id": 1, "iscrowd": 0, "area": area}
            annotations.append({**annotation, "bbox": box.tolist()})
    if not annotations:
        return float("nan"), float("nan")
    if not found:
        return 0.0, 0.0
    images = [{"id": index, "width": int(w), "height": int(h)} for index, (w, h) in enumerate(sizes.tolist())]
    with contextlib.redirect_stdout(io.StringIO()):  # the library prints a table
        reference = COCO({"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "phrase"}]})
        evaluation = COCOeval_faster(reference, reference.loadRes(found), "bbox", print_function=lambda *_: None)
        evaluation.run()
    return float(evaluation.stats[0]), float(evaluation.stats[1])


def pixel_boxes(boxes: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Converts relative boxes (N, 4), as (cx, cy, w, h), to left, top, width and height in pixels. ``size`` contains the width
    and height of all images (2,), or of each image (N, 2)."""
    return np.concatenate([(boxes[:, :2] - boxes[:, 2:] / 2) * size, boxes[:, 2:] * size], axis=1)
