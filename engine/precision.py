"""Mixed precision by torch.amp."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager
from typing import Literal

import torch

from utils.errors import UserError

PrecisionName = Literal["bf16", "fp16", "fp32", "O0", "O1", "O2"]
APEX_LEVELS = {"O0": "fp32", "O1": "fp16", "O2": "fp16"}
"""Precisions in the released configs (levels of apex.amp, which NVIDIA has removed) -> our names."""
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}

logger = logging.getLogger(__name__)


def has_bf16() -> bool:
    """Whether this GPU has bf16 in hardware. On older ones (V100, T4), torch emulates it slowly."""
    return torch.cuda.is_bf16_supported(including_emulation=False)


def check_precision(name: PrecisionName, device: torch.device, key: str) -> None:
    """Check that ``device`` has this precision.

    Raises:
        UserError: with the config ``key``, if it lacks bf16.
    """
    if name == "bf16" and device.type == "cuda" and not has_bf16():
        raise UserError(f"{key}: this GPU has no bf16; use {key}=fp16")


class Precision:
    """Autocast and, for fp16, loss scaling."""

    def __init__(self, name: PrecisionName, device: torch.device):
        self.name = APEX_LEVELS.get(name, name)
        if self.name != name:
            logger.info("train.precision: %s is a level of apex.amp; here it means %s by torch.amp", name, self.name)
        check_precision(name, device, "train.precision")
        self.device = device
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.name == "fp16")

    def autocast(self) -> AbstractContextManager:
        """Context of a forward pass in this precision."""
        return torch.autocast(self.device.type, DTYPES[self.name], enabled=self.name != "fp32")
