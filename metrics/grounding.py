"""Accuracy of boxes, with plain IoU and with the IoU of the published evaluation script for RefCOCO."""

from __future__ import annotations

import numpy as np

from metrics.finite import check_finite


def iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Computes the plain intersection over union of N pairs of boxes, each (N, 4) as (cx, cy, w, h).

    Returns:
        (N,) in 0..1; 0 if both boxes are empty.

    >>> iou(np.array([[0.5, 0.5, 1.0, 1.0]]), np.array([[0.75, 0.5, 0.5, 1.0]]))
    array([0.5])
    """
    low = np.maximum(a[:, :2] - a[:, 2:] / 2, b[:, :2] - b[:, 2:] / 2)
    high = np.minimum(a[:, :2] + a[:, 2:] / 2, b[:, :2] + b[:, 2:] / 2)
    overlap = (high - low).clip(min=0).prod(axis=1)
    return _over_union(overlap, a, b)


def pixel_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Computes the IoU (N,) of N pairs of boxes as in the published RefCOCO evaluation. Boxes are (N, 4), in pixels, as left,
    top, width and height.

    The published evaluation counts whole pixels and includes the last pixel. An overlap of at most one pixel along an axis
    therefore counts as 0. All other overlaps, and the areas, are the same as in :func:`iou`.

    >>> pixel_iou(np.array([[0.0, 0.0, 10.0, 10.0]]), np.array([[5.0, 0.0, 10.0, 10.0]])).round(4)
    array([0.3333])
    """
    low = np.maximum(a[:, :2], b[:, :2])
    high = np.minimum(a[:, :2] + a[:, 2:] - 1, b[:, :2] + b[:, 2:] - 1)
    touching = (low < high).all(axis=1)
    overlap = np.where(touching, (high - low + 1).prod(axis=1), 0.0)
    return _over_union(overlap, a, b)


def accuracy_at_iou(predicted: np.ndarray, true: np.ndarray, threshold: float = 0.5) -> float:
    """Returns the fraction of predicted boxes whose plain IoU with the ground-truth box is at least ``threshold``, or NaN if
    there are no boxes."""
    return fraction_at_least(iou(predicted, true), threshold)


def fraction_at_least(overlaps: np.ndarray, threshold: float = 0.5) -> float:
    """Returns the fraction of overlaps (N,) that are at least ``threshold``, or NaN for N = 0.

    >>> fraction_at_least(np.array([0.5, 0.4]))
    0.5
    """
    return float((overlaps >= threshold).mean()) if len(overlaps) else float("nan")


def _over_union(overlap: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Divides the overlaps of N pairs of boxes by their unions. Raises :class:`UserError` if a coordinate is not finite."""
    check_finite(np.concatenate([a, b]), "coordinates of boxes")
    union = a[:, 2:].prod(axis=1) + b[:, 2:].prod(axis=1) - overlap
    return np.divide(overlap, union, out=np.zeros_like(overlap), where=union > 0)
