"""The micro-batches of a step: their copies on the device, and their random numbers, which depend only on the position in the
run."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import torch
from torch import Tensor

from batches.base import map_tensors, to_device
from engine.task import TaskModel
from utils.accelerator import device_module


def prefetch(batches: Iterator[Any], device: torch.device) -> Generator[tuple[Any, Any]]:
    """Yields each micro-batch, which is on the host, and its copy on ``device``.

    On a GPU, copies run on a separate CUDA stream. Since the host runs ahead of the GPU, the GPU is still computing the previous
    step when the host requests the next micro-batch, and the copy overlaps with that computation.
    """
    module = device_module(device)
    copying = module.Stream(device) if module else None
    for batch in batches:
        if module is None:
            yield batch, to_device(batch, device)
            continue
        with module.stream(copying):
            on_device = to_device(batch, device)
        computing = module.current_stream(device)
        computing.wait_stream(copying)

        def keep(tensor: Tensor, computing: Any = computing) -> Tensor:
            tensor.record_stream(computing)  # its memory must not be reused before the step has read it
            return tensor

        yield batch, map_tensors(on_device, keep)


def seeded_micro_batches(
    model: TaskModel,
    micro_batches: Sequence[Any],
    chunks: int,
    autocast: Callable[[], AbstractContextManager[Any]],
    seed: Callable[[int], None],
) -> Iterator[tuple[int, Any]]:
    """Yields the index and content of each micro-batch of a step, even if a loss spans several micro-batches
    (``model.contrastive.chunks``). The caller must run the forward pass of each micro-batch before taking the next one.

    Args:
        model: model of the task.
        micro_batches: the micro-batches of this rank, on the device.
        chunks: number of micro-batches over which a loss is computed.
        autocast: returns the context for a forward pass.
        seed: seeds torch's generators for the micro-batch with the given index.
    """
    if chunks == 1:
        for index, batch in enumerate(micro_batches):
            seed(index)
            yield index, batch
        return
    for start in range(0, len(micro_batches), chunks):
        group = micro_batches[start : start + chunks]
        with ExitStack() as stack:
            with autocast():
                stack.enter_context(model.spanning(group, lambda index, start=start: seed(start + index)))  # type: ignore[misc]
            for index, batch in enumerate(group, start):
                seed(index)
                yield index, batch


def seed_generators(device: torch.device, *parts: int) -> None:
    """Seeds torch's generators on the CPU and on ``device`` with a 63-bit mix of several integers. Adjacent integers give
    unrelated seeds."""
    mixed = 0
    for part in parts:
        mixed = (mixed ^ (part + 0x9E3779B97F4A7C15)) * 0xBF58476D1CE4E5B9 % (1 << 64)
        mixed ^= mixed >> 31
    seed = mixed % (1 << 63)
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would also queue calls for unused devices
    if module := device_module(device):
        module.manual_seed(seed)
