"""Selects the accelerator (GPU) of this process, and copies tensors to and from it without blocking the host."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def best_device(index: int | None = None) -> torch.device:
    """Returns the GPU with the given ``index`` (by default, the current GPU), or the CPU if no GPU is available."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda" if index is None else f"cuda:{index}")


def device_module(device: torch.device) -> Any:
    """Returns the torch module that manages the streams and events of a device, such as ``torch.cuda``, or None for the CPU."""
    return None if device.type == "cpu" else torch.get_device_module(device)


def synchronize() -> None:
    """Waits until the accelerator of this process, if there is one, has finished all its work."""
    if module := device_module(best_device()):
        module.synchronize()


def disable_cudnn_attention() -> None:
    """Keeps attention on a GPU from using cuDNN, which builds a plan on the host for each new shape. Texts and candidates have
    thousands of shapes."""
    torch.backends.cuda.enable_cudnn_sdp(False)


def device_bytes(device: torch.device) -> int | None:
    """Returns the size of a GPU's memory in bytes; None for any other device."""
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Copies a tensor from the host to ``device`` without blocking the host. If ``device`` is the CPU, returns the tensor."""
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


def start_copy_to_host(values: Tensor) -> tuple[Tensor, Any]:
    """Starts copying a tensor to the host. Returns the copy, and an event to wait for before the copy is read. The event is None
    if the copy can be read immediately."""
    module = device_module(values.device)
    if module is None:
        return values, None
    host = torch.empty(values.shape, dtype=values.dtype).pin_memory()
    host.copy_(values, non_blocking=True)
    copied = module.Event()
    copied.record()
    return host, copied
