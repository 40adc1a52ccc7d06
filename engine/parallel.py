"""Data-parallel training: several processes share a step."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from utils import distributed


def data_parallel(model: nn.Module, device: torch.device) -> nn.Module:
    """The model wrapped by DDP; without a process group, the model itself."""
    if not distributed.is_distributed():
        return model
    devices = [device.index] if device.type != "cpu" else None
    # Buffers are constants here, so DDP need not send them. torch 2.13 renames this option.
    renamed = "forward_sync_buffers" in inspect.signature(DistributedDataParallel.__init__).parameters
    options: dict[str, Any] = {"forward_sync_buffers" if renamed else "broadcast_buffers": False}
    return DistributedDataParallel(model, device_ids=devices, gradient_as_bucket_view=True, **options)
