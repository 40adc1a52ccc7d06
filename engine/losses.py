"""The divisors of a step's losses, over all ranks and micro-batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from batches.losses import WORK, Work
from engine.report import RESERVED_NAMES
from engine.task import TaskModel
from utils import distributed
from utils.accelerator import send


class StepCounts(NamedTuple):
    """Counts of a step over all ranks and micro-batches, on the device.

    ``divisors``: by loss, a scalar of at least 1. ``work`` (4,) float32: size and FLOPs, in the order of
    :data:`~batches.losses.WORK`.
    """

    divisors: dict[str, Tensor]
    work: Tensor


def count_step(
    model: TaskModel, micro_batches: list[Any], device: torch.device, after: Callable[[str], None]
) -> StepCounts:
    """Count a step before its forward pass.

    The host counts and sends all numbers in one copy: on a GPU, each small operation would be a kernel launch.

    Args:
        micro_batches: those of this rank, on the host.
        after: called after the phases "counts" and "work".

    Raises:
        ValueError: if a loss has a reserved name.
    """
    counts_of_batches = [model.counts(batch) for batch in micro_batches]
    names = list(counts_of_batches[0])
    if reserved := RESERVED_NAMES.intersection(names):
        raise ValueError(f"a loss is named {sorted(reserved)[0]!r}, which a step's numbers use; give it another name")
    counts = sum_tensors([torch.stack([counts[name] for name in names]) for counts in counts_of_batches])
    after("counts")
    work = sum((model.work(batch) for batch in micro_batches), Work())
    numbers = torch.cat([counts.float(), torch.tensor([getattr(work, name) for name in WORK], dtype=torch.float32)])
    divisors, total_work = distributed.sum_over_ranks(send(numbers, device)).split([len(names), len(WORK)])
    after("work")
    return StepCounts(dict(zip(names, divisors.clamp(min=1).unbind(), strict=True)), total_work)


def sum_tensors(tensors: list[Tensor]) -> Tensor:
    """Element-wise sum of tensors of one shape."""
    return tensors[0] if len(tensors) == 1 else torch.stack(tensors).sum(dim=0)
