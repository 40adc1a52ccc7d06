"""Mixed precision with torch.amp."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager

import torch

from engine.config import PrecisionName
from utils.errors import UserError

APEX_LEVELS = {"O0": "fp32", "O1": "fp16", "O2": "fp16"}
"""Maps the levels of apex.amp, which the authors' configs use, to our names. NVIDIA has removed apex.amp."""
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}

logger = logging.getLogger(__name__)


def has_bf16() -> bool:
    """True if this GPU supports bf16 in hardware. On older GPUs (V100, T4), torch emulates bf16, which is slow."""
    return torch.cuda.is_bf16_supported(including_emulation=False)


def check_precision(name: PrecisionName, device: torch.device, key: str) -> None:
    """Checks that ``device`` supports this precision.

    Raises:
        UserError: if bf16 is requested but the GPU does not support it. The message names the config key ``key``.
    """
    if name == "bf16" and device.type == "cuda" and not has_bf16():
        raise UserError("this GPU does not support bf16", where=key, remedy=f"use {key}=fp16")


class Precision:
    """Autocast and, for fp16, loss scaling."""

    def __init__(self, name: PrecisionName, device: torch.device):
        self.name = APEX_LEVELS.get(name, name)
        if self.name != name:
            logger.info("train.precision: %s is a level of apex.amp; using %s with torch.amp instead", name, self.name)
        check_precision(name, device, "train.precision")
        self.device = device
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.name == "fp16")

    def autocast(self) -> AbstractContextManager:
        """Returns the context for a forward pass in this precision."""
        return torch.autocast(self.device.type, DTYPES[self.name], enabled=self.name != "fp32")
