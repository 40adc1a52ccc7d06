"""What models return: losses as sums over examples, and the size of a step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from torch import Tensor

from utils.accelerator import send


class Term(NamedTuple):
    """A loss before it is averaged.

    Attributes:
        total: scalar, the sum over valid examples or tokens.
        weight: factor on the loss in equation 6 (:func:`weighted_sum`).
    """

    total: Tensor
    weight: float


Losses = dict[str, Term]


def weighted_sum(losses: Losses, divisors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Computes the loss of a step by equation 6 of the paper: the sum of weight * total / divisor over all losses.

    Args:
        losses: losses of a micro-batch.
        divisors: for each loss, the number by which its total is divided: the model's ``counts(batch)``, summed over the ranks
            and micro-batches of the step, and at least 1.

    Returns:
        The averaged losses, (M,) for M losses in the order of ``divisors``, and their weighted sum, a scalar.

    Raises:
        ValueError: if a loss has no divisor, or a divisor has no loss.
    """
    if losses.keys() != divisors.keys():
        raise ValueError(f"forward() returns the losses {list(losses)}, but counts() returns {list(divisors)}")
    totals = torch.stack([losses[name].total for name in divisors])
    averages = totals / torch.stack(list(divisors.values()))
    weights = send(torch.tensor([losses[name].weight for name in divisors]), averages.device)
    return averages, (averages * weights).sum()


@dataclass(frozen=True)
class Work:
    """Size of a step. A value is NaN if it is unknown before the step or not counted.

    Attributes:
        samples: number of valid examples.
        images: number of images, including video frames.
        tokens: number of tokens, excluding padding and masked copies.
        flops: FLOPs of the forward and backward passes (:mod:`models.flops`).
    """

    samples: float = 0
    images: float = 0
    tokens: float = 0
    flops: float = 0

    def __add__(self, other: Work) -> Work:
        return Work(*(getattr(self, name) + getattr(other, name) for name in WORK))


WORK = tuple(field.name for field in fields(Work))
