"""Micro-batches on their way to the device while it is still busy with the step before."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from utils.batch import map_tensors, to_device


class Moved(NamedTuple):
    """A micro-batch as the loader gave it, and its copy on the device."""

    on_host: Any
    on_device: Any


def moved(batches: Iterator[Any], device: torch.device) -> Iterator[Moved]:
    """Each of ``batches`` with its copy on ``device``.

    A GPU copies on a stream of its own. The host is ahead of it: when the next micro-batch is asked for, the step before is
    still being computed, and the copy runs beside it.
    """
    copying = torch.cuda.Stream(device) if device.type == "cuda" else None
    for batch in batches:
        yield Moved(batch, to_device(batch, device) if copying is None else _copy(batch, device, copying))


def _copy(batch: Any, device: torch.device, copying: Any) -> Any:
    with torch.cuda.stream(copying):
        on_device = to_device(batch, device)
    computing = torch.cuda.current_stream(device)
    computing.wait_stream(copying)

    def keep(tensor: Tensor) -> Tensor:
        tensor.record_stream(computing)  # its memory is not given to others before the step is done with it
        return tensor

    return map_tensors(on_device, keep)
