"""The losses of equations 1-5, as pure functions that return sums.

The divisor spans ranks and micro-batches, so the caller divides (see :class:`utils.batch.Term`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from utils.batch import IGNORE

COLUMNS = 4096
"""Examples of all ranks that the contrastive loss compares with this rank's at a time."""

SameKey = Literal["negative", "ignore", "positive"]
"""Role of two examples with the same key for each other: negatives, no role, or positives."""


def at_least_float32(tensor: Tensor) -> Tensor:
    """``tensor`` in float32 if its precision is lower, else unchanged: a float64 model stays in float64."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


class ContrastiveExamples(NamedTuple):
    """Examples of the contrastive loss.

    ``image`` and ``text`` (N, E) are L2-normalised embeddings. ``valid`` (N,) bool marks the examples that count. ``key`` (N,)
    int64 is equal for examples that the loss must not tell apart: equal texts in pre-training, captions of one image in
    retrieval.
    """

    image: Tensor
    text: Tensor
    valid: Tensor
    key: Tensor


def contrastive(
    local: ContrastiveExamples,
    all_ranks: ContrastiveExamples,
    offset: int,
    temperature: Tensor,
    same_key: SameKey,
) -> Tensor:
    """Eq. 1: the mean of both directions' cross-entropies, summed over this rank's valid examples.

    With ``positive``, the target is spread evenly over all examples of the same key (as released for retrieval). More than
    :data:`COLUMNS` examples are compared by blocks, whose similarities are not kept: memory grows with n, and not with N.

    Args:
        local: this rank's n examples.
        all_ranks: the N examples of all ranks in order of rank; number ``offset + i`` is local example i.
        temperature: () divisor of the similarities.
        same_key: role of other examples of the same key; see :class:`models.multigrained.IdenticalTexts`.
    """
    count = len(all_ranks.valid)
    run: Callable[..., tuple[Tensor, Tensor, Tensor]] = _compare if count <= COLUMNS else partial(_recomputed, _compare)
    loss = local.image.new_zeros(())
    for queries, keys in ((local.image, all_ranks.text), (local.text, all_ranks.image)):
        blocks = []
        for start in range(0, count, COLUMNS):
            block = slice(start, start + COLUMNS)
            theirs = all_ranks.key[block], all_ranks.valid[block]
            blocks.append(run(queries, keys[block], temperature, local.key, theirs, offset - start, same_key))
        of_all, of_positives, positives = (torch.stack(part) for part in zip(*blocks, strict=True))
        likelihood = of_positives.sum(dim=0) / positives.sum(dim=0) - of_all.logsumexp(dim=0)
        loss = loss - likelihood.masked_fill(~local.valid, 0).sum() / 2
    return loss


def sigmoid_contrastive(
    local: ContrastiveExamples,
    all_ranks: ContrastiveExamples,
    offset: int,
    temperature: Tensor,
    bias: Tensor,
    same_key: SameKey,
) -> Tensor:
    """The sigmoid loss (Zhai et al., 2023, arXiv:2303.15343): each pair is judged alone, matched or not, by the sigmoid of its
    similarity. The mean of both directions, summed over this rank's valid examples; arguments as in :func:`contrastive`.

    Args:
        bias: () added to the divided similarities: a priori, most pairs do not match.
    """
    count = len(all_ranks.valid)
    loss = local.image.new_zeros(())
    for queries, keys in ((local.image, all_ranks.text), (local.text, all_ranks.image)):
        for start in range(0, count, COLUMNS):
            block = slice(start, start + COLUMNS)
            theirs = all_ranks.key[block], all_ranks.valid[block]
            arguments = (queries, keys[block], temperature, bias, local.key, theirs, offset - start, same_key)
            judged = _judge(*arguments) if count <= COLUMNS else _recomputed(_judge, *arguments)
            loss = loss + judged.masked_fill(~local.valid, 0).sum() / 2
    return loss


def _judge(
    queries: Tensor,
    keys: Tensor,
    temperature: Tensor,
    bias: Tensor,
    key: Tensor,
    theirs: tuple[Tensor, Tensor],
    offset: int,
    same_key: SameKey,
) -> Tensor:
    """The sigmoid losses of n queries, (n,), each summed over m keys; arguments as in :func:`_compare`."""
    hidden, positive = _roles(key, theirs, offset, same_key)
    logits = queries @ keys.t() / temperature + bias
    return -F.logsigmoid(torch.where(positive, logits, -logits)).masked_fill(hidden, 0).sum(dim=1)


def _roles(key: Tensor, theirs: tuple[Tensor, Tensor], offset: int, same_key: SameKey) -> tuple[Tensor, Tensor]:
    """Masks (n, m) of pairs that do not count, and of those that match, for queries with ``key`` (n,); see :func:`_compare`."""
    their_key, their_valid = theirs
    numbers = torch.arange(len(key), device=key.device) + offset
    itself = numbers.unsqueeze(1) == torch.arange(len(their_key), device=key.device)
    equal_key = (key.unsqueeze(1) == their_key.unsqueeze(0)) & their_valid | itself
    hidden = ~their_valid & ~itself
    if same_key == "ignore":
        hidden = hidden | equal_key & ~itself
    return hidden, equal_key if same_key == "positive" else itself


def _compare(
    queries: Tensor,
    keys: Tensor,
    temperature: Tensor,
    key: Tensor,
    theirs: tuple[Tensor, Tensor],
    offset: int,
    same_key: SameKey,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compare n queries with m keys. ``theirs``: ``key`` and ``valid`` of the keys; query i is key ``offset + i``.

    Returns:
        For each query, (n,): the log of the sum of exponentials over the keys, the sum over its positives, and their number.
    """
    hidden, positive = _roles(key, theirs, offset, same_key)
    # Not -inf: a block of hidden columns alone has to have a gradient of 0, and not NaN.
    likeness = (queries @ keys.t() / temperature).masked_fill(hidden, torch.finfo(queries.dtype).min / 2)
    return likeness.logsumexp(dim=1), likeness.masked_fill(~positive, 0).sum(dim=1), positive.sum(dim=1)


def _recomputed(compare: Callable[..., Any], *arguments: Any) -> Any:
    """``compare``, once more in the backward pass: only the results stay in memory."""
    return checkpoint(compare, *arguments, use_reentrant=False, preserve_rng_state=False)


def matching(logits: Tensor, matched: Tensor, valid: Tensor) -> Tensor:
    """Eq. 2 summed over the valid pairs. ``logits`` (M, 2), ``matched`` (M,) bool, ``valid`` (M,) bool."""
    per_pair = F.cross_entropy(at_least_float32(logits), matched.long(), reduction="none")
    return per_pair.masked_fill(~valid, 0).sum()


def masked_words(logits: Tensor, labels: Tensor) -> Tensor:
    """Eq. 3 summed over the masked tokens. ``logits`` (T, V), ``labels`` (T,) int64, :data:`IGNORE` elsewhere."""
    return F.cross_entropy(at_least_float32(logits), labels, ignore_index=IGNORE, reduction="sum")


def smoothed_words(logits: Tensor, labels: Tensor, smoothing: float, never: Tensor) -> Tensor:
    """Divergence of the predicted words from a smoothed target, summed over the labelled tokens.

    The target gives ``1 - smoothing`` to the label, and the rest evenly to all other words but one (as released for captioning).

    Args:
        logits: (T, V).
        labels: (T,) int64, :data:`IGNORE` for tokens without a label.
        smoothing: in 0..1; 0 gives the cross-entropy.
        never: (T,) int64, the word of each token that is no target of any kind ([CLS]).
    """
    labelled = labels != IGNORE
    label = labels.masked_fill(~labelled, 0).unsqueeze(1)
    likelihood = at_least_float32(logits).log_softmax(dim=1)
    label_likelihood = likelihood.gather(1, label)
    per_token = -(1 - smoothing) * label_likelihood
    if smoothing:
        share = smoothing / (likelihood.shape[1] - 2)
        others = likelihood.sum(dim=1, keepdim=True) - label_likelihood - likelihood.gather(1, never.unsqueeze(1))
        # With the target's negative entropy a perfect prediction costs 0.
        negative_entropy = (1 - smoothing) * math.log(1 - smoothing) + smoothing * math.log(share)
        per_token = per_token - share * others + negative_entropy
    return per_token.squeeze(1).masked_fill(~labelled, 0).sum()


def box_l1(predicted: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """L1 part of eq. 5, summed over the four coordinates (cx, cy, w, h) of the valid boxes. Boxes (N, 4), ``valid`` (N,) bool."""
    per_box = (predicted - target).abs().sum(dim=1)
    return per_box.masked_fill(~valid, 0).sum()


def box_giou(predicted: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """GIoU part of eq. 5: the sum of 1 - GIoU over the valid boxes; shapes as in :func:`box_l1`.

    A degenerate box affects its own example alone (released: it zeroes the batch).
    """
    per_box = 1 - giou(corners(predicted), corners(target))
    return per_box.masked_fill(~valid, 0).sum()


def corners(boxes_cxcywh: Tensor) -> Tensor:
    """Convert boxes (N, 4) from centre and size to left, top, right, bottom."""
    centre, size = boxes_cxcywh[:, :2], boxes_cxcywh[:, 2:]
    return torch.cat([centre - size / 2, centre + size / 2], dim=1)


def giou(a: Tensor, b: Tensor) -> Tensor:
    """Generalised IoU (N,) in [-1, 1] of boxes n of ``a`` and ``b``, (N, 4) corners; finite for boxes without area."""
    tiny = torch.finfo(a.dtype).tiny
    overlap = (torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])).clamp(min=0).prod(dim=1)
    areas = [(box[:, 2:] - box[:, :2]).clamp(min=0).prod(dim=1) for box in (a, b)]
    union = areas[0] + areas[1] - overlap
    hull = (torch.maximum(a[:, 2:], b[:, 2:]) - torch.minimum(a[:, :2], b[:, :2])).clamp(min=0).prod(dim=1)
    return overlap / union.clamp(min=tiny) - (hull - union) / hull.clamp(min=tiny)
