"""Copies of micro-batches to the device, made while it computes the step before."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from batches.base import map_tensors, to_device
from utils.accelerator import device_module


class HostAndDevice(NamedTuple):
    """A micro-batch of the loader, and its copy on the device."""

    on_host: Any
    on_device: Any


def prefetch(batches: Iterator[Any], device: torch.device) -> Generator[HostAndDevice]:
    """Yield each micro-batch with its copy on ``device``.

    A GPU copies on a separate stream. The host is ahead of the GPU: when it requests the next micro-batch, the GPU still computes
    the step before, and the copy runs in parallel.
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
        tensor.record_stream(computing)  # its memory is not reused before the step has read it
        return tensor

    return map_tensors(on_device, keep)
