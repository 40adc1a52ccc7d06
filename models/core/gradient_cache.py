"""Gradient caching (Gao et al., 2021, arXiv:2101.06983): computes the contrastive loss over several micro-batches while keeping
the activations of only one micro-batch in memory.

First, all micro-batches are embedded without storing activations. From the embeddings, we compute the loss over all micro-batches
and its gradient with respect to each embedding. Then each micro-batch goes through its usual forward and backward pass, in which
the contrastive loss is replaced by a linear function of the embeddings with this gradient. The sum over the micro-batches is the
exact gradient, provided that dropout draws the same random numbers both times.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from models.core.contrastive import ContrastiveHead
from models.core.losses import EmbeddedPairs


@dataclass(frozen=True)
class CachedLoss:
    """The contribution of one micro-batch to a contrastive loss over several micro-batches.

    Attributes:
        value: (), the contribution to the loss.
        embeddings: gradients of the complete loss with respect to :meth:`EmbeddedPairs.embeddings`.
        scalars: () each, contributions to the gradients of the temperature and the bias (:attr:`ContrastiveHead.scalars`).
    """

    value: Tensor
    embeddings: tuple[Tensor, ...]
    scalars: tuple[Tensor, ...]

    def loss(self, pairs: EmbeddedPairs, scalars: Sequence[Tensor]) -> Tensor:
        """A scalar that has the stored value and the stored gradients."""
        values, gradients = (*pairs.embeddings(), *scalars), (*self.embeddings, *self.scalars)
        products = [(each * gradient).sum() for each, gradient in zip(values, gradients, strict=True)]
        linear = torch.stack(products).sum()
        return self.value + (linear - linear.detach())


@contextmanager
def spanning(
    head: ContrastiveHead,
    embed: Callable[[Any], Sequence[EmbeddedPairs]],
    micro_batches: Sequence[Any],
    seed: Callable[[int], None],
) -> Iterator[None]:
    """A context in which the forward passes of these micro-batches use contrastive losses over all of the micro-batches. The
    forward passes must run in the given order.

    Args:
        head: contrastive head of the model.
        embed: returns the pairs of each contrastive loss of a micro-batch, in the order of the forward pass.
        micro_batches: micro-batches of this rank in one step.
        seed: seeds the random number generators for micro-batch i. ``spanning`` calls it before embedding each micro-batch, and
            the caller must call it again before each forward pass.
    """
    head.clamp_temperature()
    embedded = []
    with torch.no_grad():
        for index, batch in enumerate(micro_batches):
            seed(index)
            embedded.append(embed(batch))
    with cached_losses(head, embedded):
        yield


@contextmanager
def cached_losses(head: ContrastiveHead, embedded: Sequence[Sequence[EmbeddedPairs]]) -> Iterator[None]:
    """The second half of :func:`spanning`. ``embedded`` contains, for each micro-batch, the pairs of each contrastive loss."""
    by_loss = [_losses(head, micro_batches) for micro_batches in zip(*embedded, strict=True)]
    head.cached = iter([cached.loss for micro_batch in zip(*by_loss, strict=True) for cached in micro_batch])
    try:
        yield
    finally:
        head.cached = None


def _losses(head: ContrastiveHead, embedded: Sequence[EmbeddedPairs]) -> list[CachedLoss]:
    """The contributions of the micro-batches to one contrastive loss."""
    sizes = [len(each.image) for each in embedded]
    with torch.enable_grad():
        parts = zip(*(each.embeddings() for each in embedded), strict=True)
        embeddings = [torch.cat(part).detach().requires_grad_() for part in parts]
        hard_valid = [each.hard_valid for each in embedded if each.hard_valid is not None]
        all_pairs = EmbeddedPairs(
            embeddings[0],
            embeddings[1],
            torch.cat([each.valid for each in embedded]),
            torch.cat([each.group for each in embedded]),
            embedded[0].same_group,
            embeddings[2] if hard_valid else None,
            torch.cat(hard_valid) if hard_valid else None,
        )
        loss = head.start_loss(all_pairs)()
        gradients = torch.autograd.grad(loss, (*embeddings, *head.scalars))
    fraction = 1 / len(embedded)
    scalars = tuple(gradient * fraction for gradient in gradients[len(embeddings) :])
    micro_batches = zip(*(gradient.split(sizes) for gradient in gradients[: len(embeddings)]), strict=True)
    return [CachedLoss(loss.detach() * fraction, gradients_of_batch, scalars) for gradients_of_batch in micro_batches]
