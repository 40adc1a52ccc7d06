"""The losses of equations 1-5 of the paper, as pure functions that return sums over examples.

The caller turns a sum into a mean, because the number of examples to divide by includes those of all ranks and micro-batches (see
:class:`batches.losses.Term`).
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
"""Maximum number of pairs of all ranks that the contrastive loss compares with this rank's pairs at a time."""

SameGroup = Literal["negative", "ignore", "positive"]
"""How the contrastive loss treats two pairs of the same group: as negatives of each other, not at all, or as positives. The
matching loss takes negatives from the same group only with "negative"."""


PADDED = -1e4
"""Similarity to a pair that is not valid. Its probability is 0, and its logarithm is finite."""


def at_least_float32(tensor: Tensor) -> Tensor:
    """Converts ``tensor`` to float32 if its precision is lower. A float64 tensor is returned unchanged."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


class EmbeddedPairs(NamedTuple):
    """The embeddings of N pairs of an image and a text; for translations, of two texts.

    Attributes:
        image, text: (N, E), L2-normalised embeddings.
        valid: (N,) bool, True for the pairs that enter the loss.
        group: (N,) int64, the group of each pair. Within a group, each text also matches the images of the other pairs: in
            pre-training, the pairs of a group have equal texts; in retrieval, they have the same image.
        same_group: how the losses treat two pairs of the same group.
        hard_negatives: (N, J, E), embeddings of J texts for each pair, which are negatives of this pair only.
        hard_valid: (N, J) bool, True for the hard negatives that enter the loss.
    """

    image: Tensor
    text: Tensor
    valid: Tensor
    group: Tensor
    same_group: SameGroup
    hard_negatives: Tensor | None = None
    hard_valid: Tensor | None = None

    def embeddings(self) -> list[Tensor]:
        """Returns the embeddings of the images, the texts and, if there are any, the hard negatives."""
        return [self.image, self.text, *([] if self.hard_negatives is None else [self.hard_negatives])]

    def with_embeddings(self, embeddings: Sequence[Tensor]) -> EmbeddedPairs:
        """Returns a copy of the pairs with other embeddings, in the order of :meth:`embeddings`."""
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
    retrieval). If there are more than :data:`COLUMNS` pairs, they are compared in chunks, and their similarities are recomputed
    in the backward pass, so the memory for similarities does not grow with the number of ranks. Each image is also compared with
    its hard negatives.

    Args:
        local: the N pairs of this rank.
        all_ranks: the pairs of all ranks, in order of rank.
        offset: index in ``all_ranks`` of this rank's first pair.
        temperature: scalar tensor by which the similarities are divided.
    """
    count = len(all_ranks.valid)
    run: Callable[..., tuple[Tensor, Tensor, Tensor]] = _compare if count <= COLUMNS else partial(_recomputed, _compare)
    loss = local.image.new_zeros(())
    for queries, keys in ((local.image, all_ranks.text), (local.text, all_ranks.image)):
        chunks = []
        if queries is local.image and local.hard_negatives is not None:
            hard = hard_similarity(local, temperature).logsumexp(dim=1)
            # Hard negatives are never positives.
            chunks.append((hard, torch.zeros_like(hard), torch.zeros_like(local.group)))
        for start in range(0, count, COLUMNS):
            block = slice(start, start + COLUMNS)
            labels = all_ranks.group[block], all_ranks.valid[block]
            chunks.append(run(queries, keys[block], temperature, local.group, labels, offset - start, local.same_group))
        log_totals, positive_sums, positives = (torch.stack(part) for part in zip(*chunks, strict=True))
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
        local, all_ranks, offset, temperature: see :func:`contrastive`.
        bias: scalar tensor that is added to the similarities after the division; it reflects that most images and texts do not
            match.
    """
    count = len(all_ranks.valid)
    loss = local.image.new_zeros(())
    for queries, keys in ((local.image, all_ranks.text), (local.text, all_ranks.image)):
        for start in range(0, count, COLUMNS):
            block = slice(start, start + COLUMNS)
            labels = all_ranks.group[block], all_ranks.valid[block]
            keys_and_scale = (queries, keys[block], temperature, bias)
            arguments = (*keys_and_scale, local.group, labels, offset - start, local.same_group)
            per_query = (
                _pairwise_sigmoid(*arguments) if count <= COLUMNS else _recomputed(_pairwise_sigmoid, *arguments)
            )
            loss = loss + per_query.masked_fill(~local.valid, 0).sum() / 2
    if local.hard_negatives is not None:
        per_pair = -F.logsigmoid(-(hard_similarity(local, temperature) + bias)).sum(dim=1)
        loss = loss + per_pair.masked_fill(~local.valid, 0).sum() / 2
    return loss


def hard_similarity(pairs: EmbeddedPairs, temperature: Tensor) -> Tensor:
    """Similarities (N, J) of the images to their hard negatives, divided by the temperature. The similarity to an invalid hard
    negative is a large negative number without a gradient."""
    assert pairs.hard_negatives is not None and pairs.hard_valid is not None
    with torch.autocast(pairs.image.device.type, enabled=False):
        logits = torch.einsum("ne,nje->nj", pairs.image, pairs.hard_negatives) / temperature
    return logits.masked_fill(~pairs.hard_valid, torch.finfo(logits.dtype).min / 2)


def _pairwise_sigmoid(
    queries: Tensor,
    keys: Tensor,
    temperature: Tensor,
    bias: Tensor,
    group: Tensor,
    key_labels: tuple[Tensor, Tensor],
    offset: int,
    same_group: SameGroup,
) -> Tensor:
    """The sigmoid losses (N,) of N queries, each summed over M keys. For the arguments, see :func:`_compare`."""
    ignored, positive = _ignored_and_positive(group, key_labels, offset, same_group)
    logits = queries @ keys.t() / temperature + bias
    return -F.logsigmoid(torch.where(positive, logits, -logits)).masked_fill(ignored, 0).sum(dim=1)


def _ignored_and_positive(
    group: Tensor, key_labels: tuple[Tensor, Tensor], offset: int, same_group: SameGroup
) -> tuple[Tensor, Tensor]:
    """Two masks (N, M): the keys that a query ignores, and the keys that match the query. For the arguments, see
    :func:`_compare`."""
    key_group, key_valid = key_labels
    index = torch.arange(len(group), device=group.device) + offset
    same_pair = index.unsqueeze(1) == torch.arange(len(key_group), device=group.device)
    equal = (group.unsqueeze(1) == key_group.unsqueeze(0)) & key_valid | same_pair
    ignored = ~key_valid & ~same_pair  # an invalid query keeps its own key, because a row without keys would give NaN
    if same_group == "ignore":
        ignored = ignored | equal & ~same_pair
    return ignored, equal if same_group == "positive" else same_pair


def _compare(
    queries: Tensor,
    keys: Tensor,
    temperature: Tensor,
    group: Tensor,
    key_labels: tuple[Tensor, Tensor],
    offset: int,
    same_group: SameGroup,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compares the embeddings of N queries with the embeddings of M keys.

    Args:
        queries, keys: (N, E) and (M, E).
        temperature: scalar tensor by which the similarities are divided.
        group: (N,), the groups of the queries.
        key_labels: ``group`` and ``valid`` of the keys, each (M,).
        offset: query i and key ``offset + i`` are the same pair.
        same_group: how the loss treats a query and a key of the same group.

    Returns:
        Three tensors (N,) with a value for each query: the log of the sum of exponentials over the keys, the sum of the
        similarities to its positives, and the number of its positives.
    """
    ignored, positive = _ignored_and_positive(group, key_labels, offset, same_group)
    # A large negative number instead of -inf, so that a chunk in which all columns are ignored has a gradient of 0, not NaN.
    logits = (queries @ keys.t() / temperature).masked_fill(ignored, torch.finfo(queries.dtype).min / 2)
    return logits.logsumexp(dim=1), logits.masked_fill(~positive, 0).sum(dim=1), positive.sum(dim=1)


def _recomputed(compare: Callable[..., Any], *arguments: Any) -> Any:
    """Calls ``compare`` with gradient checkpointing: only its results stay in memory, and it is called again in the backward
    pass."""
    return checkpoint(compare, *arguments, use_reentrant=False, preserve_rng_state=False)


def matching(logits: Tensor, matched: Tensor, valid: Tensor) -> Tensor:
    """Eq. 2, summed over the valid pairs. ``logits`` (M, 2), ``matched`` (M,) bool, ``valid`` (M,) bool."""
    per_pair = F.cross_entropy(at_least_float32(logits), matched.long(), reduction="none")
    return per_pair.masked_fill(~valid, 0).sum()


def distillation(student: Tensor, teacher: Tensor, valid: Tensor) -> Tensor:
    """The Kullback-Leibler divergence of a model's distributions over the pairs of a batch from those of a teacher (the mean of
    both directions), summed over the valid pairs.

    Args:
        student, teacher: (N, N), similarities of N images and N texts, divided by the temperature.
        valid: (N,) bool, True for the pairs that enter the loss.
    """
    directions = ((student, teacher), (student.t(), teacher.t()))
    total = student.new_zeros(())
    for own, target in directions:
        logs = [each.masked_fill(~valid, PADDED).log_softmax(dim=1) for each in (own, target)]
        total = total + (logs[1].exp() * (logs[1] - logs[0])).sum(dim=1)[valid].sum()
    return total / len(directions)


def masked_words(logits: Tensor, labels: Tensor) -> Tensor:
    """Eq. 3, summed over the masked tokens. ``logits`` are (Q, V), and ``labels`` (Q,) int64, :data:`IGNORE` for unlabelled
    tokens."""
    return F.cross_entropy(at_least_float32(logits), labels, ignore_index=IGNORE, reduction="sum")


def smoothed_words(logits: Tensor, labels: Tensor, smoothing: float, excluded: Tensor) -> Tensor:
    """Divergence of the predicted words from a smoothed target, summed over the labelled tokens.

    The target probability of the label is ``1 - smoothing``. All other words except ``excluded`` share the rest evenly, as in the
    authors' code for captioning.

    Args:
        logits: (Q, V).
        labels: (Q,) int64, :data:`IGNORE` for tokens without a label.
        smoothing: in 0..1; 0 gives the cross-entropy.
        excluded: (Q,) int64, the word whose target probability is 0 at each token ([CLS]).
    """
    labelled = labels != IGNORE
    label = labels.masked_fill(~labelled, 0).unsqueeze(1)
    log_likelihood = at_least_float32(logits).log_softmax(dim=1)
    label_log_likelihood = log_likelihood.gather(1, label)
    per_token = -(1 - smoothing) * label_log_likelihood
    if smoothing:
        share = smoothing / (log_likelihood.shape[1] - 2)
        others = (
            log_likelihood.sum(dim=1, keepdim=True)
            - label_log_likelihood
            - log_likelihood.gather(1, excluded.unsqueeze(1))
        )
        # Adding the negative entropy of the target makes the loss of a perfect prediction 0.
        negative_entropy = (1 - smoothing) * math.log(1 - smoothing) + smoothing * math.log(share)
        per_token = per_token - share * others + negative_entropy
    return per_token.squeeze(1).masked_fill(~labelled, 0).sum()


def box_l1(predicted: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """The L1 loss of eq. 5, summed over the four coordinates (cx, cy, w, h) of the valid boxes. ``predicted`` and ``target`` are
    (N, 4), and ``valid`` is (N,) bool."""
    per_box = (predicted - target).abs().sum(dim=1)
    return per_box.masked_fill(~valid, 0).sum()


def box_giou(predicted: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """The GIoU loss of eq. 5: the sum of 1 - GIoU over the valid boxes. For the shapes, see :func:`box_l1`.

    A degenerate box affects only the loss of its example. (In the authors' code, it sets the loss of the whole batch to zero.)
    """
    per_box = 1 - giou(corners(predicted), corners(target))
    return per_box.masked_fill(~valid, 0).sum()


def corners(boxes_cxcywh: Tensor) -> Tensor:
    """Converts boxes (N, 4) from (cx, cy, w, h) to (left, top, right, bottom)."""
    centre, size = boxes_cxcywh[:, :2], boxes_cxcywh[:, 2:]
    return torch.cat([centre - size / 2, centre + size / 2], dim=1)


def giou(a: Tensor, b: Tensor) -> Tensor:
    """Generalised IoU (N,) in [-1, 1] of box n in ``a`` and box n in ``b``, both (N, 4) as corners. The result is finite for
    boxes without area."""
    tiny = torch.finfo(a.dtype).tiny
    overlap = (torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])).clamp(min=0).prod(dim=1)
    areas = [(box[:, 2:] - box[:, :2]).clamp(min=0).prod(dim=1) for box in (a, b)]
    union = areas[0] + areas[1] - overlap
    hull = (torch.maximum(a[:, 2:], b[:, 2:]) - torch.minimum(a[:, :2], b[:, :2])).clamp(min=0).prod(dim=1)
    return overlap / union.clamp(min=tiny) - (hull - union) / hull.clamp(min=tiny)
