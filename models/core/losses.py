"""The losses of equations 1-5, as pure functions that return sums.

The divisor covers all ranks and micro-batches, so the caller divides (see :class:`batches.losses.Term`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from batches.base import IGNORE

COLUMNS = 4096
"""Maximum number of pairs that the contrastive loss compares with this rank's pairs at a time."""

SameGroup = Literal["negative", "ignore", "positive"]
"""How two pairs of the same group are treated: as negatives of each other, ignored, or as positives."""


def at_least_float32(tensor: Tensor) -> Tensor:
    """``tensor`` in float32 if its precision is lower, and unchanged otherwise, so that a float64 model stays in float64."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


class EmbeddedPairs(NamedTuple):
    """The embeddings of N pairs of an image and a text; for translations, of two texts.

    Attributes:
        image, text: (N, E) L2-normalised embeddings.
        valid: (N,) bool, True for the pairs that enter the loss.
        group: (N,) int64. Within a group, the text of each pair matches the images of all other pairs: in pre-training, the pairs
            have equal texts; in retrieval, they have the same image.
        same_group: how the contrastive loss treats pairs of the same group.
        hard_negatives: (N, K, E) embeddings of texts that are negatives of pair n alone.
        hard_valid: (N, K) bool, True for the hard negatives that enter the loss.
    """

    image: Tensor
    text: Tensor
    valid: Tensor
    group: Tensor
    same_group: SameGroup
    hard_negatives: Tensor | None = None
    hard_valid: Tensor | None = None

    def embeddings(self) -> list[Tensor]:
        """The embeddings of images, texts and, if there are any, hard negatives."""
        return [self.image, self.text, *([] if self.hard_negatives is None else [self.hard_negatives])]

    def with_embeddings(self, embeddings: Sequence[Tensor]) -> EmbeddedPairs:
        """Returns a copy of the pairs with these :meth:`embeddings`."""
        image, text, *hard = embeddings
        return self._replace(image=image, text=text, hard_negatives=hard[0] if hard else None)


def contrastive(
    local: EmbeddedPairs,
    all_ranks: EmbeddedPairs,
    offset: int,
    temperature: Tensor,
) -> Tensor:
    """Eq. 1: the mean of the cross-entropies in both directions, summed over this rank's valid pairs.

    With ``same_group="positive"``, the target is spread evenly over all pairs of the same group (as in the authors' code for
    retrieval). More than :data:`COLUMNS` pairs are compared in chunks, and their similarities are recomputed in the backward
    pass, so memory does not grow with the number of ranks. Each image is also compared with its own hard negatives.

    Args:
        local: the N pairs of this rank.
        all_ranks: the pairs of all ranks in order of rank; pair ``offset + i`` is local pair i.
        temperature: () divisor of the similarities.
    """
    count = len(all_ranks.valid)
    run: Callable[..., tuple[Tensor, Tensor, Tensor]] = _compare if count <= COLUMNS else partial(_recomputed, _compare)
    loss = local.image.new_zeros(())
    for queries, keys in ((local.image, all_ranks.text), (local.text, all_ranks.image)):
        blocks = []
        if queries is local.image and local.hard_negatives is not None:
            hard = hard_similarity(local, temperature).logsumexp(dim=1)
            # Hard negatives are never positives.
            blocks.append((hard, torch.zeros_like(hard), torch.zeros_like(local.group)))
        for start in range(0, count, COLUMNS):
            block = slice(start, start + COLUMNS)
            theirs = all_ranks.group[block], all_ranks.valid[block]
            blocks.append(run(queries, keys[block], temperature, local.group, theirs, offset - start, local.same_group))
        log_totals, positive_sums, positives = (torch.stack(part) for part in zip(*blocks, strict=True))
        likelihood = positive_sums.sum(dim=0) / positives.sum(dim=0) - log_totals.logsumexp(dim=0)
        loss = loss - likelihood.masked_fill(~local.valid, 0).sum() / 2
    return loss


def sigmoid_contrastive(
    local: EmbeddedPairs,
    all_ranks: EmbeddedPairs,
    offset: int,
    temperature: Tensor,
    bias: Tensor,
) -> Tensor:
    """The sigmoid loss (Zhai et al., 2023, arXiv:2303.15343): each combination of an image and a text is classified as matched or
    not, by the sigmoid of the similarity. Returns the mean of both directions, summed over this rank's valid pairs. The hard
    negatives of an image are combined with this image only.

    Args:
        local, all_ranks, offset, temperature: as in :func:`contrastive`.
        bias: (), added to the similarities after division; it reflects that most images and texts do not match.
    """
    count = len(all_ranks.valid)
    loss = local.image.new_zeros(())
    for queries, keys in ((local.image, all_ranks.text), (local.text, all_ranks.image)):
        for start in range(0, count, COLUMNS):
            block = slice(start, start + COLUMNS)
            theirs = all_ranks.group[block], all_ranks.valid[block]
            arguments = (
                *(queries, keys[block], temperature, bias),
                *(local.group, theirs, offset - start, local.same_group),
            )
            per_query = (
                _pairwise_sigmoid(*arguments) if count <= COLUMNS else _recomputed(_pairwise_sigmoid, *arguments)
            )
            loss = loss + per_query.masked_fill(~local.valid, 0).sum() / 2
    if local.hard_negatives is not None:
        per_pair = -F.logsigmoid(-(hard_similarity(local, temperature) + bias)).sum(dim=1)
        loss = loss + per_pair.masked_fill(~local.valid, 0).sum() / 2
    return loss


def hard_similarity(pairs: EmbeddedPairs, temperature: Tensor) -> Tensor:
    """Similarities (N, K) of the images to their own hard negatives, divided by the temperature. For invalid hard negatives, this
    is a large negative number without a gradient."""
    assert pairs.hard_negatives is not None and pairs.hard_valid is not None
    logits = torch.einsum("ne,nke->nk", pairs.image, pairs.hard_negatives) / temperature
    return logits.masked_fill(~pairs.hard_valid, torch.finfo(logits.dtype).min / 2)


def _pairwise_sigmoid(
    queries: Tensor,
    keys: Tensor,
    temperature: Tensor,
    bias: Tensor,
    group: Tensor,
    theirs: tuple[Tensor, Tensor],
    offset: int,
    same_group: SameGroup,
) -> Tensor:
    """The sigmoid losses (N,) of N queries, each summed over M keys; arguments as in :func:`_compare`."""
    hidden, positive = _roles(group, theirs, offset, same_group)
    logits = queries @ keys.t() / temperature + bias
    return -F.logsigmoid(torch.where(positive, logits, -logits)).masked_fill(hidden, 0).sum(dim=1)


def _roles(group: Tensor, theirs: tuple[Tensor, Tensor], offset: int, same_group: SameGroup) -> tuple[Tensor, Tensor]:
    """Two masks (N, M): the keys that a query ignores, and the keys that match it; arguments as in :func:`_compare`."""
    their_group, their_valid = theirs
    index = torch.arange(len(group), device=group.device) + offset
    itself = index.unsqueeze(1) == torch.arange(len(their_group), device=group.device)
    equal = (group.unsqueeze(1) == their_group.unsqueeze(0)) & their_valid | itself
    hidden = ~their_valid & ~itself
    if same_group == "ignore":
        hidden = hidden | equal & ~itself
    return hidden, equal if same_group == "positive" else itself


def _compare(
    queries: Tensor,
    keys: Tensor,
    temperature: Tensor,
    group: Tensor,
    theirs: tuple[Tensor, Tensor],
    offset: int,
    same_group: SameGroup,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compare the embeddings of N queries with the embeddings of M keys.

    Args:
        queries, keys: (N, E) and (M, E).
        temperature: () divisor of the similarities.
        group: (N,) groups of the queries.
        theirs: ``group`` and ``valid`` (M,) of the keys.
        offset: query i and key ``offset + i`` are the same pair.
        same_group: how a query and a key of the same group are treated.

    Returns:
        For each query, (N,): the log of the sum of exponentials over the keys, the sum over its positives, and the number of
        positives.
    """
    hidden, positive = _roles(group, theirs, offset, same_group)
    # A large negative number instead of -inf, so that a chunk in which all columns are hidden has a gradient of 0, not NaN.
    logits = (queries @ keys.t() / temperature).masked_fill(hidden, torch.finfo(queries.dtype).min / 2)
    return logits.logsumexp(dim=1), logits.masked_fill(~positive, 0).sum(dim=1), positive.sum(dim=1)


def _recomputed(compare: Callable[..., Any], *arguments: Any) -> Any:
    """Call ``compare`` with gradient checkpointing: it is called again in the backward pass, so that only its results stay in
    memory."""
    return checkpoint(compare, *arguments, use_reentrant=False, preserve_rng_state=False)


def matching(logits: Tensor, matched: Tensor, valid: Tensor) -> Tensor:
    """Eq. 2, summed over the valid pairs. ``logits`` (M, 2), ``matched`` (M,) bool, ``valid`` (M,) bool."""
    per_pair = F.cross_entropy(at_least_float32(logits), matched.long(), reduction="none")
    return per_pair.masked_fill(~valid, 0).sum()


def masked_words(logits: Tensor, labels: Tensor) -> Tensor:
    """Eq. 3, summed over the masked tokens. ``logits`` (Q, V); ``labels`` (Q,) int64, :data:`IGNORE` for unlabelled tokens."""
    return F.cross_entropy(at_least_float32(logits), labels, ignore_index=IGNORE, reduction="sum")


def smoothed_words(logits: Tensor, labels: Tensor, smoothing: float, excluded: Tensor) -> Tensor:
    """Divergence of the predicted words from a smoothed target, summed over the labelled tokens.

    The target is ``1 - smoothing`` for the label; all other words except ``excluded`` share the rest evenly, as in the authors'
    code for captioning.

    Args:
        logits: (Q, V).
        labels: (Q,) int64, :data:`IGNORE` for tokens without a label.
        smoothing: in 0..1; 0 gives the cross-entropy.
        excluded: (Q,) int64, the word ([CLS]) whose target is 0 at each token.
    """
    labelled = labels != IGNORE
    label = labels.masked_fill(~labelled, 0).unsqueeze(1)
    likelihood = at_least_float32(logits).log_softmax(dim=1)
    label_likelihood = likelihood.gather(1, label)
    per_token = -(1 - smoothing) * label_likelihood
    if smoothing:
        share = smoothing / (likelihood.shape[1] - 2)
        others = likelihood.sum(dim=1, keepdim=True) - label_likelihood - likelihood.gather(1, excluded.unsqueeze(1))
        # Adding the negative entropy of the target makes the loss of a perfect prediction 0.
        negative_entropy = (1 - smoothing) * math.log(1 - smoothing) + smoothing * math.log(share)
        per_token = per_token - share * others + negative_entropy
    return per_token.squeeze(1).masked_fill(~labelled, 0).sum()


def box_l1(predicted: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """The L1 loss of eq. 5, summed over the four coordinates (cx, cy, w, h) of the valid boxes. Boxes (N, 4), ``valid`` (N,)
    bool."""
    per_box = (predicted - target).abs().sum(dim=1)
    return per_box.masked_fill(~valid, 0).sum()


def box_giou(predicted: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """The GIoU loss of eq. 5: the sum of 1 - GIoU over the valid boxes; shapes as in :func:`box_l1`.

    A degenerate box affects only its own example (in the authors' code it sets the loss of the whole batch to zero).
    """
    per_box = 1 - giou(corners(predicted), corners(target))
    return per_box.masked_fill(~valid, 0).sum()


def corners(boxes_cxcywh: Tensor) -> Tensor:
    """Convert boxes (N, 4) from centre and size to left, top, right, bottom."""
    centre, size = boxes_cxcywh[:, :2], boxes_cxcywh[:, 2:]
    return torch.cat([centre - size / 2, centre + size / 2], dim=1)


def giou(a: Tensor, b: Tensor) -> Tensor:
    """Generalised IoU (N,) in [-1, 1] of box n in ``a`` and box n in ``b``, (N, 4) corners; finite for boxes without area."""
    tiny = torch.finfo(a.dtype).tiny
    overlap = (torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])).clamp(min=0).prod(dim=1)
    areas = [(box[:, 2:] - box[:, :2]).clamp(min=0).prod(dim=1) for box in (a, b)]
    union = areas[0] + areas[1] - overlap
    hull = (torch.maximum(a[:, 2:], b[:, 2:]) - torch.minimum(a[:, :2], b[:, :2])).clamp(min=0).prod(dim=1)
    return overlap / union.clamp(min=tiny) - (hull - union) / hull.clamp(min=tiny)
