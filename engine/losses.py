"""Computes the numbers by which the losses of a step are divided, such as the number of valid pairs over all ranks and
micro-batches."""

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

    Attributes:
        divisors: for each loss, the number to divide it by, as a scalar of at least 1.
        work: size and FLOPs of the step, (4,) float32, in the order of :data:`~batches.losses.WORK`.
    """

    divisors: dict[str, Tensor]
    work: Tensor


def count_step(
    model: TaskModel, micro_batches: list[Any], device: torch.device, after: Callable[[str], None]
) -> StepCounts:
    """Computes the numbers by which the losses are divided and the work of a step, before the step's forward pass.

    Counting happens on the host, and all counts are sent to the device in a single copy, because every small operation on a GPU
    would need a kernel launch.

    Args:
        model: model of the task.
        micro_batches: the micro-batches of this rank, on the host.
        device: device to send the counts to.
        after: called after the phases "counts" and "work" (:data:`engine.trainer.PHASES`), with the name of the phase.

    Raises:
        ValueError: if a loss has a reserved name.
    """
    counts_of_batches = [model.counts(batch) for batch in micro_batches]
    names = list(counts_of_batches[0])
    if reserved := RESERVED_NAMES.intersection(names):
        raise ValueError(
            f"a loss is named {sorted(reserved)[0]!r}, which is the name of another metric; rename the loss"
        )
    counts = sum_tensors([torch.stack([counts[name] for name in names]) for counts in counts_of_batches])
    after("counts")
    work = sum((model.work(batch) for batch in micro_batches), Work())
    values = torch.cat([counts.float(), torch.tensor([getattr(work, name) for name in WORK], dtype=torch.float32)])
    divisors, total_work = distributed.sum_over_ranks(send(values, device)).split([len(names), len(WORK)])
    after("work")
    return StepCounts(dict(zip(names, divisors.clamp(min=1).unbind(), strict=True)), total_work)


def sum_tensors(tensors: list[Tensor]) -> Tensor:
    """Returns the element-wise sum of tensors that have the same shape."""
    return tensors[0] if len(tensors) == 1 else torch.stack(tensors).sum(dim=0)
