"""Micro-batches on their way to the device while it is still busy with the one before."""

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


def move_ahead(batches: Iterator[Any], device: torch.device) -> Iterator[Moved]:
    """Each of ``batches`` with its copy on ``device``; on a GPU the next one is copied on a stream of its own meanwhile.

    The loader is asked for one more than was taken, and never for one beyond its last.
    """
    if device.type != "cuda":
        for batch in batches:
            yield Moved(batch, to_device(batch, device))
        return
    copying = torch.cuda.Stream(device)
    ahead = _copy(next(batches, None), device, copying)
    while ahead is not None:
        current, ahead = ahead, _copy(next(batches, None), device, copying)
        computing = torch.cuda.current_stream(device)
        computing.wait_stream(copying)

        def keep(tensor: Tensor, stream: Any = computing) -> Tensor:
            if tensor.is_cuda:
                tensor.record_stream(stream)  # its memory is not given to others before the step is done with it
            return tensor

        map_tensors(current.on_device, keep)
        yield current


def _copy(batch: Any, device: torch.device, stream: Any) -> Moved | None:
    if batch is None:
        return None
    with torch.cuda.stream(stream):
        return Moved(batch, to_device(batch, device))
