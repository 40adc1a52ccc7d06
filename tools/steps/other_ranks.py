"""Simulates the memory of examples from other ranks in a single process, to plan a run on more GPUs than the machine has."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from utils import distributed


@contextmanager
def simulated_ranks(ranks: int) -> Iterator[None]:
    """Replaces :func:`utils.distributed.start_gather` with a function that returns tensors of the size that ``ranks`` ranks would
    gather.

    Each rank is assumed to have the same examples as this rank. Nothing is sent, and the gradients differ from those of a real
    run.
    """
    original = distributed.start_gather
    if ranks > 1:
        distributed.start_gather = partial(_repeated, ranks)
    try:
        yield
    finally:
        distributed.start_gather = original


def _repeated(ranks: int, tensor: Tensor) -> Callable[[], Tensor]:
    """Like :func:`~utils.distributed.start_gather`, returns a function whose result contains the gathered tensors."""
    local = tensor.detach().contiguous()
    gathered = local.repeat(ranks, *[1] * (local.dim() - 1))

    def finish() -> Tensor:
        return cast(Tensor, _Repeat.apply(tensor, gathered)) if tensor.requires_grad else gathered

    return finish


class _Repeat(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, gathered: Tensor) -> Tensor:
        ctx.count = len(tensor)
        return gathered.view_as(gathered)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad.contiguous()[: ctx.count].clone(), None
