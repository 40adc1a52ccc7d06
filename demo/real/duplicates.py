"""Finds near-duplicate pictures: the same drawing in two sources, or twice in one source, even with different names."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

THUMBNAIL = 16
GREY = 128
MAX_DISTANCE = 0.05
"""Pictures with a smaller distance are near-duplicates. In all sources, nearly every pair below 0.03 is the same drawing. From
0.03 to 0.06, some pairs are icons of the same design (an "eject button" and an "upwards button"). Above 0.06, no two pictures are
the same drawing."""

Thumbnails = NDArray[np.float32]
"""N thumbnails as an array (N, 16 * 16 * 3), with values in [-0.5, 0.5]."""


def thumbnail(pixels: Image.Image) -> NDArray[np.float32]:
    """Returns the thumbnail of a cut-out in the middle of a grey square: (768,) float32 in [-0.5, 0.5], where 0 is grey.

    The square is grey because a white cut-out would be invisible on white, and a black one on black.
    """
    side = max(pixels.size)
    canvas = Image.new("RGB", (side, side), (GREY, GREY, GREY))
    canvas.paste(pixels, ((side - pixels.width) // 2, (side - pixels.height) // 2), pixels)
    small = canvas.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
    values = np.asarray(small, dtype=np.float32).reshape(-1)
    return (values - np.float32(GREY)) / np.float32(255)


def nearest_duplicates(some: Thumbnails, others: Thumbnails) -> NDArray[np.int64]:
    """Returns, for each of ``some``, the index of its nearest near-duplicate in ``others``, or -1 if it has none.

    The distance between two pictures is the sum of their absolute differences, divided by the sum of their distances from an
    empty picture. The distance is 0 for equal pictures and at most 1. Without this normalisation, all thin drawings would be
    similar, because they are mostly empty.
    """
    indices = np.full(len(some), -1, dtype=np.int64)
    if len(others):
        content = np.abs(others).sum(axis=1)
        for index, row in enumerate(some):
            distances = np.abs(others - row).sum(axis=1) / (content + np.abs(row).sum() + 1e-9)
            best = int(distances.argmin())
            indices[index] = best if distances[best] < MAX_DISTANCE else -1
    return indices


def first_of_each(thumbnails: Sequence[NDArray[np.float32]]) -> list[int]:
    """Returns the indices of pictures without an earlier near-duplicate."""
    kept: list[int] = []
    stack = np.empty((len(thumbnails), THUMBNAIL * THUMBNAIL * 3), dtype=np.float32)
    for index, row in enumerate(thumbnails):
        if nearest_duplicates(row[None], stack[: len(kept)])[0] < 0:
            stack[len(kept)] = row
            kept.append(index)
    return kept
