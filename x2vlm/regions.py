"""All boxes of a phrase from a model whose box head predicts only one: regions of the image whose content matches the phrase."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torchvision.ops import nms

SHARES = (1 / 4, 3 / 8, 1 / 2, 3 / 4, 1.0)
"""Side lengths of the regions, as shares of the image's side lengths."""

LONGEST = 2
"""Maximum aspect ratio of a region, relative to the image's side lengths."""

OVERLAP = 0.3
"""Maximum IoU of two regions; if it is larger, only the better match is kept."""

AT_ONCE = 32
"""Number of regions that are scored together. Each region needs a copy of its image's keys and values."""

Boxes = list[tuple[list[float], float]]
"""Boxes as centre and size, relative to the image, with the probability that each belongs to the phrase, best first."""


def candidate_regions(rows: int, columns: int) -> Tensor:
    """Returns regions (C, 4) of a grid of patches, centre and size relative to the image. Their edges lie between patches, and
    adjacent regions of the same size overlap by half, as far as the patch grid allows."""
    places = [
        (x / columns, y / rows, width / columns, height / rows)
        for height, width in _sides(rows, columns)
        for y in _starts(height, rows)
        for x in _starts(width, columns)
    ]
    corners = torch.tensor(places)
    return torch.cat([corners[:, :2] + corners[:, 2:] / 2, corners[:, 2:]], dim=1)


def matching_regions(
    score: Callable[[Tensor, Tensor], Tensor], grid: tuple[int, int], phrases: int, threshold: float
) -> list[Boxes]:
    """Finds the regions that match each phrase.

    Args:
        score: function that returns the probabilities (R,) that the content of R boxes (R, 4) matches the phrases with the
            indices (R,) int64.
        grid: rows and columns of patches.
        phrases: number of phrases.
        threshold: minimum probability of a region.
    """
    regions = candidate_regions(*grid)
    found: list[Boxes] = []
    for phrase in range(phrases):
        parts = [score(part, torch.full((len(part),), phrase)).float().cpu() for part in regions.split(AT_ONCE)]
        scores = torch.cat(parts)
        kept = (scores >= threshold).nonzero().flatten()
        corners = torch.cat([regions[:, :2] - regions[:, 2:] / 2, regions[:, :2] + regions[:, 2:] / 2], dim=1)[kept]
        best = kept[nms(corners, scores[kept], OVERLAP)]
        found.append(list(zip(regions[best].tolist(), scores[best].tolist(), strict=True)))
    return found


def _sides(rows: int, columns: int) -> list[tuple[int, int]]:
    """Returns the heights and widths of the regions, in patches."""
    pairs = [(a, b) for a in SHARES for b in SHARES if max(a, b) <= LONGEST * min(a, b)]
    return sorted({(max(1, round(a * rows)), max(1, round(b * columns))) for a, b in pairs})


def _starts(side: int, grid: int) -> list[int]:
    return sorted({*range(0, grid - side + 1, max(1, side // 2)), grid - side})
