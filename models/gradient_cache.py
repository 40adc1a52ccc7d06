"""Gradient caching (Gao et al., 2021, arXiv:2101.06983): the contrastive loss over several micro-batches, with the activations
of one in memory.

First all micro-batches are embedded without activations, which gives the loss over all of them, and its gradient with respect to
each embedding. Then each has its usual forward and backward pass, where the loss is the linear function of its embeddings that
has this gradient. The sum over the micro-batches is the exact gradient, provided that dropout draws the same numbers both times.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from models.contrastive import ContrastiveHead, EmbeddedExamples, Examples


@dataclass(frozen=True)
class CachedLoss:
    """The share of one micro-batch in a contrastive loss.

    Attributes:
        value: () share of the loss.
        image, text: (N, E) gradients of the whole loss with respect to the embeddings.
        scalars: () shares of its gradients with respect to the parameters of the loss (:attr:`ContrastiveHead.scalars`).
    """

    value: Tensor
    image: Tensor
    text: Tensor
    scalars: tuple[Tensor, ...]

    def loss(self, embedded: EmbeddedExamples, scalars: Sequence[Tensor]) -> Tensor:
        """The value, with these gradients."""
        linear = (embedded.image * self.image).sum() + (embedded.text * self.text).sum()
        for scalar, gradient in zip(scalars, self.scalars, strict=True):
            linear = linear + scalar * gradient
        return self.value + (linear - linear.detach())


@contextmanager
def cached_losses(head: ContrastiveHead, embedded: Sequence[Sequence[EmbeddedExamples]]) -> Iterator[None]:
    """While this lasts, the forward passes of K micro-batches, in their order, have contrastive losses over all of them.

    Args:
        head: of the model.
        embedded: for each of the K micro-batches, the examples of each of its contrastive losses, in the forward pass's order.
    """
    by_loss = [_losses(head, micro_batches) for micro_batches in zip(*embedded, strict=True)]
    head.cached = iter([loss for of_micro_batch in zip(*by_loss, strict=True) for loss in of_micro_batch])
    try:
        yield
    finally:
        head.cached = None


def _losses(head: ContrastiveHead, embedded: Sequence[EmbeddedExamples]) -> list[CachedLoss]:
    """The shares of K micro-batches in one contrastive loss."""
    sizes = [len(each.image) for each in embedded]
    with torch.enable_grad():
        whole = EmbeddedExamples(
            torch.cat([each.image for each in embedded]).detach().requires_grad_(),
            torch.cat([each.text for each in embedded]).detach().requires_grad_(),
            Examples(
                torch.cat([each.examples.valid for each in embedded]),
                torch.cat([each.examples.key for each in embedded]),
                embedded[0].examples.same_key,
            ),
        )
        loss = head.start_loss(whole)()
        image, text, *scalars = torch.autograd.grad(loss, (whole.image, whole.text, *head.scalars))
    share = 1 / len(embedded)
    return [
        CachedLoss(loss.detach() * share, *gradients, tuple(scalar * share for scalar in scalars))
        for gradients in zip(image.split(sizes), text.split(sizes), strict=True)
    ]
