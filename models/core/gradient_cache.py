"""Gradient caching (Gao et al., 2021, arXiv:2101.06983): the contrastive loss over several micro-batches, with the activations
of only one micro-batch in memory.

First all micro-batches are embedded without storing activations, which gives the loss over all of them and its gradient with
respect to each embedding. Then each micro-batch has its usual forward and backward pass, in which a linear function of its
embeddings with this gradient takes the place of the contrastive loss. The sum over the micro-batches is the exact gradient,
provided that dropout draws the same random numbers both times.
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
    """The share of one micro-batch in a contrastive loss over several.

    Attributes:
        value: () share of the loss.
        image, text: (N, E) gradients of the whole loss with respect to the embeddings.
        scalars: () shares of the gradients with respect to the parameters of the loss (:attr:`ContrastiveHead.scalars`).
    """

    value: Tensor
    image: Tensor
    text: Tensor
    scalars: tuple[Tensor, ...]

    def loss(self, pairs: EmbeddedPairs, scalars: Sequence[Tensor]) -> Tensor:
        """A scalar that has the stored value and the stored gradients."""
        linear = (pairs.image * self.image).sum() + (pairs.text * self.text).sum()
        for scalar, gradient in zip(scalars, self.scalars, strict=True):
            linear = linear + scalar * gradient
        return self.value + (linear - linear.detach())


@contextmanager
def spanning(
    head: ContrastiveHead,
    embed: Callable[[Any], Sequence[EmbeddedPairs]],
    micro_batches: Sequence[Any],
    before: Callable[[int], None],
) -> Iterator[None]:
    """A context in which the forward passes of these micro-batches, in this order, use contrastive losses over all of them.

    Args:
        head: contrastive head of the model.
        embed: returns the pairs of each contrastive loss of a micro-batch, in the order of the forward pass.
        micro_batches: micro-batches of this rank in one step.
        before: seeds the random numbers of micro-batch i. It is called here, and the caller must call it again before each
            forward pass.
    """
    head.clamp_temperature()
    embedded = []
    with torch.no_grad():
        for index, batch in enumerate(micro_batches):
            before(index)
            embedded.append(embed(batch))
    with cached_losses(head, embedded):
        yield


@contextmanager
def cached_losses(head: ContrastiveHead, embedded: Sequence[Sequence[EmbeddedPairs]]) -> Iterator[None]:
    """See :func:`spanning`. ``embedded``: for each micro-batch, the pairs of each of its contrastive losses."""
    by_loss = [_losses(head, micro_batches) for micro_batches in zip(*embedded, strict=True)]
    head.cached = iter([cached.loss for of_micro_batch in zip(*by_loss, strict=True) for cached in of_micro_batch])
    try:
        yield
    finally:
        head.cached = None


def _losses(head: ContrastiveHead, embedded: Sequence[EmbeddedPairs]) -> list[CachedLoss]:
    """The shares of the micro-batches in one contrastive loss."""
    sizes = [len(each.image) for each in embedded]
    with torch.enable_grad():
        whole = EmbeddedPairs(
            torch.cat([each.image for each in embedded]).detach().requires_grad_(),
            torch.cat([each.text for each in embedded]).detach().requires_grad_(),
            torch.cat([each.valid for each in embedded]),
            torch.cat([each.group for each in embedded]),
            embedded[0].same_group,
        )
        loss = head.start_loss(whole)()
        image, text, *scalars = torch.autograd.grad(loss, (whole.image, whole.text, *head.scalars))
    share = 1 / len(embedded)
    return [
        CachedLoss(loss.detach() * share, *gradients, tuple(scalar * share for scalar in scalars))
        for gradients in zip(image.split(sizes), text.split(sizes), strict=True)
    ]
