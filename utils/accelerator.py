"""The accelerator of this process: which it is, and how numbers reach it and come back while the host goes on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def best_device(index: int | None = None) -> torch.device:
    """A GPU if there is one, else the CPU. ``index``: of the GPU; None: the current one."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda" if index is None else f"cuda:{index}")


def asynchronous(device: torch.device) -> Any:
    """The module of a device that works while the host goes on, such as ``torch.cuda``, with its streams and events; None for the
    CPU."""
    return None if device.type == "cpu" else torch.get_device_module(device)


def send(numbers: Tensor, device: torch.device) -> Tensor:
    """A copy on ``device`` of what the host has computed. The host does not wait; on the CPU, it is the tensor itself."""
    return numbers if device.type == "cpu" else numbers.pin_memory().to(device, non_blocking=True)


def start_copy_to_host(values: Tensor) -> tuple[Tensor, Any]:
    """Start to copy numbers to the host; returns the copy, and the event after which it can be read, None: at once."""
    module = asynchronous(values.device)
    if module is None:
        return values, None
    host = torch.empty(values.shape, dtype=values.dtype).pin_memory()
    host.copy_(values, non_blocking=True)
    copied = module.Event()
    copied.record()
    return host, copied
