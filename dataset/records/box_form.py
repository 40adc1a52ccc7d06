"""Guesses the format of boxes in annotations. In records, boxes are [x, y, width, height] in pixels."""

from __future__ import annotations

import numpy as np

from dataset.records.boxes import BOX_TOLERANCE_PX

OUTSIDE, CORNERS = 0.2, 0.95
"""Boxes are taken for corners if more than the first fraction of them extends beyond the image when read as x, y, width, height,
and at least the second fraction fits into it when read as x1, y1, x2, y2. (Real widths are often smaller than x.)"""


def outside_images(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Returns (N,) bool: True for each box that extends beyond its image when it is read as x, y, width, height.
    Args:
        boxes: (N, 4), in pixels.
        sizes: (N, 2), width and height of the images.
    """
    far = boxes[:, :2] + boxes[:, 2:]
    return (boxes[:, :2] < -BOX_TOLERANCE_PX).any(axis=1) | (far > sizes + BOX_TOLERANCE_PX).any(axis=1)


def fit_as_corners(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Returns (N,) bool: True for each box that is inside its image when it is read as x1, y1, x2, y2.
    Args:
        boxes: (N, 4), in pixels.
        sizes: (N, 2), width and height of the images.
    """
    rising = (boxes[:, 2:] > boxes[:, :2]).all(axis=1) & (boxes[:, :2] >= -BOX_TOLERANCE_PX).all(axis=1)
    return np.asarray(rising & (boxes[:, 2:] <= sizes + BOX_TOLERANCE_PX).all(axis=1))


def look_like_corners(boxes: np.ndarray, sizes: np.ndarray) -> bool:
    """Returns True if boxes (N, 4) are probably x1, y1, x2, y2.

    Args:
        sizes: (N, 2), width and height of their images.
    """
    if not len(boxes):
        return False
    fits = fit_as_corners(boxes, sizes)
    return bool(outside_images(boxes, sizes).mean() > OUTSIDE and fits.mean() >= CORNERS)


def fraction_on_rotated_view(boxes: np.ndarray, sizes: np.ndarray, orientations: np.ndarray) -> float:
    """Of the boxes that extend beyond their stored images, returns the fraction that fits once the image is rotated by 90
    degrees.

    Args:
        boxes: (N, 4), x, y, width, height.
        sizes: (N, 2), width and height of the stored images.
        orientations: (N,), EXIF orientations; 5 to 8 rotate an image by 90 degrees.

    Returns:
        The fraction, or 0 if no box extends beyond its image.
    """
    outside = outside_images(boxes, sizes)
    explained = outside & (orientations >= 5) & ~outside_images(boxes, sizes[:, ::-1])
    return float(explained.sum() / max(1, outside.sum()))
