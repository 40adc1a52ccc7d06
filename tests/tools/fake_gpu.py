"""A simulated GPU: torch's functions check their device as in torch, steps run on the CPU, and memory is counted here."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from engine.steps import trainer_of
from engine.trainer import Trainer
from tools.steps import real as real_steps

TOTAL, CONTEXT, ROW = 80_000, 500, 10
"""Bytes of the GPU, bytes that CUDA takes at once, and bytes that a step takes per row of a micro-batch."""


class FakeGPU:
    """Freed blocks stay reserved until the cache is emptied, and the peak starts from the reserved bytes."""

    def __init__(self) -> None:
        self.live = self.reserved = self.peak = 0
        self.outside, self.cap = CONTEXT, float(TOTAL)
        self.rows: list[int] = []
        self.tuning: list[int] = []

    def step(self, rows: int) -> None:
        """Allocates the memory of a step on a micro-batch, and for the first steps also the memory given by ``tuning``. It is
        freed with this frame."""
        self.rows.append(rows)
        size = ROW * rows + (self.tuning.pop(0) if self.tuning else 0)
        activations = torch.empty(1)
        self.live += size
        weakref.finalize(activations, self._free, size)
        self.reserved = max(self.reserved, self.live)
        if self.reserved > self.cap:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.peak = max(self.peak, self.reserved)

    def _free(self, size: int) -> None:
        self.live -= size

    def empty_cache(self) -> None:
        self.reserved = self.live

    def reset_peak(self, device: torch.device) -> None:
        self.peak = self.reserved

    def set_fraction(self, fraction: float, device: torch.device) -> None:
        torch.cuda._utils._get_device_index(device)  # a device without an index is rejected
        assert isinstance(fraction, float) and 0 <= fraction <= 1
        self.cap = fraction * TOTAL

    def install(self, monkeypatch: pytest.MonkeyPatch, rows_of: Callable[[Any], int]) -> None:
        """Makes planning use this GPU; ``rows_of`` returns the rows of a micro-batch."""
        for name, function in {
            "current_device": lambda: 0,
            "empty_cache": self.empty_cache,
            "get_device_name": lambda device=None: "a pretended GPU",
            "get_device_properties": lambda device=None: SimpleNamespace(total_memory=TOTAL, major=8),
            "max_memory_reserved": lambda device=None: self.peak,
            "mem_get_info": lambda device=None: (TOTAL - self.outside - self.reserved, TOTAL),
            "memory_reserved": lambda device=None: self.reserved,
            "reset_peak_memory_stats": self.reset_peak,
            "set_per_process_memory_fraction": self.set_fraction,
            "synchronize": lambda device=None: None,
        }.items():
            monkeypatch.setattr(torch.cuda, name, function)

        def on_cpu(model: Any, train: Any, optim: Any, device: torch.device) -> Trainer:
            assert device.type == "cuda"
            trainer = trainer_of(model, train, optim, torch.device("cpu"))
            model.register_forward_pre_hook(lambda _, given: self.step(rows_of(given[0])))
            return trainer

        monkeypatch.setattr(real_steps, "trainer_of", on_cpu)
