"""Which form the boxes of annotations seem to have; records hold [x, y, width, height] in pixels."""

from __future__ import annotations

import numpy as np

from dataset.records.schema import BOX_TOLERANCE_PX

OUTSIDE, CORNERS = 0.2, 0.95
"""Boxes look like corners if more than the first share reaches out of the image as x, y, width, height, and at least the second
share fits as x1, y1, x2, y2. (Of true widths, many are smaller than their x.)"""


def are_relative(boxes: np.ndarray) -> bool:
    """Whether there are boxes (N, 4), and all of their numbers lie within 0 and 1: fractions of the image, not pixels."""
    return len(boxes) > 0 and bool(((boxes >= 0) & (boxes <= 1)).all())


def outside_images(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Which boxes (N, 4), read as x, y, width, height, reach out of their images of ``sizes`` (N, 2), (N,) bool."""
    far = boxes[:, :2] + boxes[:, 2:]
    return (boxes[:, :2] < -BOX_TOLERANCE_PX).any(axis=1) | (far > sizes + BOX_TOLERANCE_PX).any(axis=1)


def fit_as_corners(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Which boxes (N, 4) lie in their images of ``sizes`` (N, 2) when they are read as x1, y1, x2, y2, (N,) bool."""
    rising = (boxes[:, 2:] > boxes[:, :2]).all(axis=1) & (boxes[:, :2] >= -BOX_TOLERANCE_PX).all(axis=1)
    return np.asarray(rising & (boxes[:, 2:] <= sizes + BOX_TOLERANCE_PX).all(axis=1))


def look_like_corners(boxes: np.ndarray, sizes: np.ndarray) -> bool:
    """Whether boxes (N, 4) seem to be x1, y1, x2, y2 in images of ``sizes`` (N, 2), width and height."""
    if not len(boxes):
        return False
    fits = fit_as_corners(boxes, sizes)
    return bool(outside_images(boxes, sizes).mean() > OUTSIDE and fits.mean() >= CORNERS)


def share_on_turned_view(boxes: np.ndarray, sizes: np.ndarray, orientations: np.ndarray) -> float:
    """The share of the boxes (N, 4) outside their stored images that lie inside when the image is turned by 90 degrees.

    Args:
        boxes: x, y, width, height.
        sizes: (N, 2), width and height of the stored images.
        orientations: (N,), EXIF orientations; 5 to 8 turn an image by 90 degrees.

    Returns:
        0 if no box is outside.
    """
    outside = outside_images(boxes, sizes)
    explained = outside & (orientations >= 5) & ~outside_images(boxes, sizes[:, ::-1])
    return float(explained.sum() / max(1, outside.sum()))
