"""The losses of equations 1-5, as pure functions that return sums.

What a sum is divided by spans ranks and micro-batches, so the caller divides (see :class:`utils.batch.Term`).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from utils.batch import IGNORE


class ContrastiveRows(NamedTuple):
    """Rows of the contrastive loss: embeddings (N, E), L2-normalised; ``valid`` (N,) bool; ``key`` (N,) equal for equal texts."""

    image: Tensor
    text: Tensor
    valid: Tensor
    key: Tensor


def contrastive(
    own: ContrastiveRows, everyone: ContrastiveRows, offset: int, temperature: Tensor, ignore_identical: bool
) -> Tensor:
    """Eq. 1: the mean of both directions' cross-entropies, summed over this rank's valid rows.

    Args:
        own: this rank's n rows.
        everyone: all N rows, of all ranks in order of rank; row ``offset + i`` is own row i.
        ignore_identical: other rows with the same text are no negatives (as published: they are).
    """
    n, total = len(own.valid), len(everyone.valid)
    targets = torch.arange(n, device=own.valid.device) + offset
    hidden = ~everyone.valid.expand(n, total)
    if ignore_identical:
        hidden = hidden | (own.key.unsqueeze(1) == everyone.key.unsqueeze(0))
    hidden = hidden & (targets.unsqueeze(1) != torch.arange(total, device=targets.device))
    loss = own.image.new_zeros(())
    for queries, keys in ((own.image, everyone.text), (own.text, everyone.image)):
        logits = (queries @ keys.t() / temperature).masked_fill(hidden, -torch.inf)
        rows = F.cross_entropy(logits, targets, reduction="none")
        loss = loss + rows.masked_fill(~own.valid, 0).sum() / 2
    return loss


def matching(logits: Tensor, matched: Tensor, counts: Tensor) -> Tensor:
    """Eq. 2 summed over the pairs that count. ``logits`` (M, 2), ``matched`` (M,) bool, ``counts`` (M,) bool."""
    rows = F.cross_entropy(logits.float(), matched.long(), reduction="none")
    return rows.masked_fill(~counts, 0).sum()


def masked_words(logits: Tensor, labels: Tensor) -> Tensor:
    """Eq. 3 summed over the masked tokens. ``logits`` (T, V), ``labels`` (T,) with :data:`IGNORE` where none is."""
    return F.cross_entropy(logits.float(), labels, ignore_index=IGNORE, reduction="sum")


def box_l1(predicted: Tensor, target: Tensor, counts: Tensor) -> Tensor:
    """The L1 part of eq. 5, summed over the four coordinates (cx, cy, w, h) and the rows that count."""
    rows = (predicted - target).abs().sum(dim=1)
    return rows.masked_fill(~counts, 0).sum()


def box_giou(predicted: Tensor, target: Tensor, counts: Tensor) -> Tensor:
    """The GIoU part of eq. 5, sum of 1 - GIoU. A degenerate box affects its own row alone (released: it zeroes the batch)."""
    rows = 1 - giou(corners(predicted), corners(target))
    return rows.masked_fill(~counts, 0).sum()


def corners(boxes_cxcywh: Tensor) -> Tensor:
    """(N, 4) centre and size -> (N, 4) left, top, right, bottom."""
    centre, size = boxes_cxcywh[:, :2], boxes_cxcywh[:, 2:]
    return torch.cat([centre - size / 2, centre + size / 2], dim=1)


def giou(a: Tensor, b: Tensor) -> Tensor:
    """Generalised IoU of boxes row by row, (N, 4) corners each -> (N,) in [-1, 1]; finite for boxes without area."""
    tiny = torch.finfo(a.dtype).tiny
    overlap = (torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])).clamp(min=0).prod(dim=1)
    areas = [(box[:, 2:] - box[:, :2]).clamp(min=0).prod(dim=1) for box in (a, b)]
    union = areas[0] + areas[1] - overlap
    hull = (torch.maximum(a[:, 2:], b[:, 2:]) - torch.minimum(a[:, :2], b[:, :2])).clamp(min=0).prod(dim=1)
    return overlap / union.clamp(min=tiny) - (hull - union) / hull.clamp(min=tiny)
