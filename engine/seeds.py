"""Random seeds that depend only on the position in a run."""

from __future__ import annotations

import torch

from utils.accelerator import device_module


def seed_generators(seed: int, device: torch.device) -> None:
    """Seeds torch's generators on the CPU and on ``device``. ``torch.manual_seed`` would also queue calls for unused devices."""
    torch.default_generator.manual_seed(seed)
    if module := device_module(device):
        module.manual_seed(seed)


def mix_seed(*parts: int) -> int:
    """Mixes several integers into one 63-bit seed. Adjacent integers give unrelated seeds."""
    mixed = 0
    for part in parts:
        mixed = (mixed ^ (part + 0x9E3779B97F4A7C15)) * 0xBF58476D1CE4E5B9 % (1 << 64)
        mixed ^= mixed >> 31
    return mixed % (1 << 63)
