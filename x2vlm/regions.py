"""Finds all boxes of a phrase with a model whose box head predicts only one box. The boxes are the regions of the image whose
content matches the phrase."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torchvision.ops import nms

SIDE_FRACTIONS = (1 / 4, 3 / 8, 1 / 2, 3 / 4, 1.0)
"""Side lengths of the regions, as fractions of the image's side lengths."""

MAX_ASPECT_RATIO = 2
"""Maximum aspect ratio of a region, relative to the image's side lengths."""

MAX_IOU = 0.3
"""Maximum IoU of two regions; if two regions overlap more, only the better match is kept."""

BATCH = 32
"""Number of regions that are scored together. Each region needs a copy of its image's keys and values."""

Boxes = list[tuple[list[float], float]]
"""Boxes as centre and size, relative to the image, each with the probability that it belongs to the phrase; best first."""


def candidate_regions(rows: int, columns: int) -> Tensor:
    """Returns regions (C, 4) of a grid of patches, as centre and size relative to the image. Their edges lie between patches, and
    adjacent regions of the same size overlap by half, as far as the grid allows."""
    boxes = [
        (x / columns, y / rows, width / columns, height / rows)
        for height, width in _sides(rows, columns)
        for y in _starts(height, rows)
        for x in _starts(width, columns)
    ]
    corners = torch.tensor(boxes)
    return torch.cat([corners[:, :2] + corners[:, 2:] / 2, corners[:, 2:]], dim=1)


def matching_regions(
    score: Callable[[Tensor, Tensor], Tensor], grid: tuple[int, int], phrases: int, threshold: float
) -> list[Boxes]:
    """Returns the regions that match each phrase.

    Args:
        score: function that takes R boxes (R, 4) and the indices (R,) int64 of R phrases, and returns the probabilities (R,)
            that the content of each box matches its phrase.
        grid: rows and columns of patches.
        phrases: number of phrases.
        threshold: minimum probability of a region.
    """
    regions = candidate_regions(*grid)
    found: list[Boxes] = []
    for phrase in range(phrases):
        batches = regions.split(BATCH)
        scores = torch.cat([score(batch, torch.full((len(batch),), phrase)).float().cpu() for batch in batches])
        kept = (scores >= threshold).nonzero().flatten()
        corners = torch.cat([regions[:, :2] - regions[:, 2:] / 2, regions[:, :2] + regions[:, 2:] / 2], dim=1)[kept]
        best = kept[nms(corners, scores[kept], MAX_IOU)]
        found.append(list(zip(regions[best].tolist(), scores[best].tolist(), strict=True)))
    return found


def _sides(rows: int, columns: int) -> list[tuple[int, int]]:
    """Returns the heights and widths of the regions, in patches."""
    pairs = [(a, b) for a in SIDE_FRACTIONS for b in SIDE_FRACTIONS if max(a, b) <= MAX_ASPECT_RATIO * min(a, b)]
    return sorted({(max(1, round(a * rows)), max(1, round(b * columns))) for a, b in pairs})


def _starts(side: int, grid: int) -> list[int]:
    return sorted({*range(0, grid - side + 1, max(1, side // 2)), grid - side})
