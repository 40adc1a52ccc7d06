"""Copies micro-batches to the device while the device computes the previous step."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from batches.base import map_tensors, to_device
from utils.accelerator import device_module


class HostAndDevice(NamedTuple):
    """A micro-batch from the loader, and its copy on the device."""

    on_host: Any
    on_device: Any


def prefetch(batches: Iterator[Any], device: torch.device) -> Generator[HostAndDevice]:
    """Yields each micro-batch with its copy on ``device``.

    On a GPU, copies run on a separate CUDA stream. Since the host runs ahead of the GPU, the GPU is still computing the previous
    step when the host requests the next micro-batch, and the copy overlaps with that computation.
    """
    module = device_module(device)
    copying = module.Stream(device) if module else None
    for batch in batches:
        yield HostAndDevice(batch, _copy(batch, device, module, copying) if module else to_device(batch, device))


def _copy(batch: Any, device: torch.device, module: Any, copying: Any) -> Any:
    with module.stream(copying):
        on_device = to_device(batch, device)
    computing = module.current_stream(device)
    computing.wait_stream(copying)

    def keep(tensor: Tensor) -> Tensor:
        tensor.record_stream(computing)  # its memory must not be reused before the step has read it
        return tensor

    return map_tensors(on_device, keep)
