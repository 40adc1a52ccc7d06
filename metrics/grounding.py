"""Accuracy of boxes."""

from __future__ import annotations

import numpy as np


def iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Plain intersection over union, row by row, of (N, 4) boxes as centre and size: (N,) in 0..1; 0 where both are empty.

    >>> iou(np.array([[0.5, 0.5, 1.0, 1.0]]), np.array([[0.75, 0.5, 0.5, 1.0]]))
    array([0.5])
    """
    low = np.maximum(a[:, :2] - a[:, 2:] / 2, b[:, :2] - b[:, 2:] / 2)
    high = np.minimum(a[:, :2] + a[:, 2:] / 2, b[:, :2] + b[:, 2:] / 2)
    overlap = (high - low).clip(min=0).prod(axis=1)
    union = a[:, 2:].prod(axis=1) + b[:, 2:].prod(axis=1) - overlap
    return np.divide(overlap, union, out=np.zeros_like(overlap), where=union > 0)


def accuracy_at_iou(predicted: np.ndarray, true: np.ndarray, threshold: float = 0.5) -> float:
    """Share of boxes whose IoU with the truth is at least ``threshold``; NaN for no boxes."""
    return float((iou(predicted, true) >= threshold).mean()) if len(true) else float("nan")
