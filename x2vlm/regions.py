"""Finds all boxes of a phrase with a model whose box head predicts only one box.

Regions of the image whose content matches the phrase are found first. Their edges lie between patches, so the box head then
predicts a box from the patches of each region.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torchvision.ops import box_convert, box_iou, nms

SIDE_FRACTIONS = (1 / 4, 3 / 8, 1 / 2, 3 / 4, 1.0)
"""Side lengths of the regions, as fractions of the image's side lengths."""

MAX_ASPECT_RATIO = 2
"""Maximum aspect ratio of a region, relative to the image's side lengths."""

MAX_IOU = 0.3
"""Maximum IoU of two boxes; if two boxes overlap more, only the better match is kept."""

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


def matching_boxes(
    refine: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    grids: Sequence[tuple[int, int]],
    best: Sequence[tuple[list[float], float | None]],
    threshold: float,
) -> list[Boxes]:
    """Returns the boxes of each phrase.

    Each region gives a box, with the probability of the region. Of these boxes, those that overlap with the phrase's best box are
    estimates of the same object: the best box replaces them, with the highest of their probabilities. Of other overlapping boxes,
    the most probable one is kept.

    Args:
        refine: function that takes R regions (R, 4) and the indices (R,) int64 of R phrases, and returns the probabilities (R,)
            that the content of each region matches its phrase, and the boxes (R, 4) that the box head predicts from the regions.
        grids: rows and columns of patches of the image of each phrase.
        best: for each phrase, the box that the box head predicts from the whole image, and its probability.
        threshold: minimum probability of a box.
    """
    found: list[Boxes] = []
    for phrase, ((best_box, best_score), grid) in enumerate(zip(best, grids, strict=True)):
        regions = candidate_regions(*grid)
        refined = [refine(batch, torch.full((len(batch),), phrase)) for batch in regions.split(BATCH)]
        region_scores, region_boxes = (torch.cat(parts).float().cpu() for parts in zip(*refined, strict=True))
        scores = torch.cat([torch.tensor([best_score or 0.0]), region_scores])
        corners = box_convert(torch.cat([torch.tensor([best_box]), region_boxes]), "cxcywh", "xyxy").clamp(0, 1)
        same_object = (box_iou(corners[:1], corners)[0] > MAX_IOU).index_fill(0, torch.tensor([0]), True)
        scores[0] = scores[same_object].max()
        reached = (scores >= threshold).nonzero().flatten()
        priorities = scores.index_fill(0, torch.tensor([0]), 2.0)  # above all probabilities
        kept = reached[nms(corners[reached], priorities[reached], MAX_IOU)]
        kept = kept[scores[kept].argsort(descending=True, stable=True)]
        boxes = box_convert(corners[kept], "xyxy", "cxcywh")
        found.append(list(zip(boxes.tolist(), scores[kept].tolist(), strict=True)))
    return found


def _sides(rows: int, columns: int) -> list[tuple[int, int]]:
    """Returns the heights and widths of the regions, in patches."""
    pairs = [(a, b) for a in SIDE_FRACTIONS for b in SIDE_FRACTIONS if max(a, b) <= MAX_ASPECT_RATIO * min(a, b)]
    return sorted({(max(1, round(a * rows)), max(1, round(b * columns))) for a, b in pairs})


def _starts(side: int, grid: int) -> list[int]:
    return sorted({*range(0, grid - side + 1, max(1, side // 2)), grid - side})
