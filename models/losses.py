"""The losses of equations 1-5, as pure functions that return sums.

The divisor spans ranks and micro-batches, so the caller divides (see :class:`utils.batch.Term`).
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from utils.batch import IGNORE

SameKey = Literal["negative", "ignore", "positive"]
"""The role of rows with the same key for each other: a negative as any other, none, or a positive."""


def at_least_float32(tensor: Tensor) -> Tensor:
    """``tensor`` in float32 if it is in a lower precision, else as it is: a float64 model stays in float64."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


class ContrastiveRows(NamedTuple):
    """Rows of the contrastive loss: embeddings (N, E), L2-normalised; ``valid`` (N,) bool; ``key`` (N,) int64, equal for rows
    that are not to be told apart (equal texts in pre-training, captions of one image in retrieval)."""

    image: Tensor
    text: Tensor
    valid: Tensor
    key: Tensor


def contrastive(
    own: ContrastiveRows, everyone: ContrastiveRows, offset: int, temperature: Tensor, same_key: SameKey
) -> Tensor:
    """Eq. 1: the mean of both directions' cross-entropies, summed over this rank's valid rows.

    With ``positive``, the target is spread evenly over all rows of the same key (as released for retrieval).

    Args:
        own: this rank's n rows.
        everyone: all N rows, of all ranks in order of rank; row ``offset + i`` is own row i.
        same_key: what other rows of the same key are; as published, negatives in pre-training.
    """
    n, total = len(own.valid), len(everyone.valid)
    itself = torch.arange(n, device=own.valid.device).unsqueeze(1) + offset == torch.arange(
        total, device=own.valid.device
    )
    same = (own.key.unsqueeze(1) == everyone.key.unsqueeze(0)) & everyone.valid | itself
    hidden = ~everyone.valid & ~itself
    if same_key == "ignore":
        hidden = hidden | same & ~itself
    positive = same if same_key == "positive" else itself
    target = positive.to(own.image.dtype) / positive.sum(dim=1, keepdim=True)
    loss = own.image.new_zeros(())
    for queries, keys in ((own.image, everyone.text), (own.text, everyone.image)):
        likelihood = (queries @ keys.t() / temperature).masked_fill(hidden, -torch.inf).log_softmax(dim=1)
        # A hidden column has no share in the target; 0 times -inf would be NaN.
        rows = -(target * likelihood.masked_fill(hidden, 0)).sum(dim=1)
        loss = loss + rows.masked_fill(~own.valid, 0).sum() / 2
    return loss


def matching(logits: Tensor, matched: Tensor, counts: Tensor) -> Tensor:
    """Eq. 2 summed over the pairs that count. ``logits`` (M, 2), ``matched`` (M,) bool, ``counts`` (M,) bool."""
    rows = F.cross_entropy(at_least_float32(logits), matched.long(), reduction="none")
    return rows.masked_fill(~counts, 0).sum()


def masked_words(logits: Tensor, labels: Tensor) -> Tensor:
    """Eq. 3 summed over the masked tokens. ``logits`` (T, V), ``labels`` (T,) with :data:`IGNORE` where none is."""
    return F.cross_entropy(at_least_float32(logits), labels, ignore_index=IGNORE, reduction="sum")


def smoothed_words(logits: Tensor, labels: Tensor, smoothing: float, never: Tensor) -> Tensor:
    """Words with label smoothing, summed over the labelled rows: the divergence of the prediction from a target that gives
    ``1 - smoothing`` to the label and the rest evenly to all other words but one (as released for captioning).

    Args:
        logits: (T, V).
        labels: (T,) int64, :data:`IGNORE` where none is.
        smoothing: in 0..1; 0 gives the cross-entropy.
        never: (T,) int64, the word of each row that is no target of any kind ([CLS]).
    """
    counts = labels != IGNORE
    label = labels.masked_fill(~counts, 0).unsqueeze(1)
    likelihood = at_least_float32(logits).log_softmax(dim=1)
    of_label = likelihood.gather(1, label)
    rows = -(1 - smoothing) * of_label
    if smoothing:
        share = smoothing / (likelihood.shape[1] - 2)
        others = likelihood.sum(dim=1, keepdim=True) - of_label - likelihood.gather(1, never.unsqueeze(1))
        least = (1 - smoothing) * math.log(1 - smoothing) + smoothing * math.log(share)
        rows = rows - share * others + least
    return rows.squeeze(1).masked_fill(~counts, 0).sum()


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
