"""Measures how long the phases of a training step take."""

from __future__ import annotations

import itertools
import time
from typing import Any

import torch

from utils import accelerator

PHASES = ("data", "forward", "backward", "optimiser")
"""The reported phases of a step."""

REPORTED_PHASE = {
    **dict.fromkeys(("data",), "data"),
    **dict.fromkeys(("rates", "counts", "work", "forward", "losses"), "forward"),
    **dict.fromkeys(("backward",), "backward"),
    **dict.fromkeys(("clip", "optimiser", "numbers"), "optimiser"),
}
"""Maps the phases of the trainer (:data:`engine.trainer.PHASES`) to :data:`PHASES`."""


class Clock:
    """Records the end of each phase of a step. The times are read after all steps, so the host never waits for the device."""

    def __init__(self, device: torch.device):
        self.device = device
        self.marks: list[Any] = []
        self.phases: list[str] = []
        self.mark("start")

    def mark(self, phase: str) -> None:
        """Records the end of ``phase``."""
        mark: Any = time.perf_counter()
        if module := accelerator.device_module(self.device):
            mark = module.Event(enable_timing=True)
            mark.record()
        self.marks.append(mark)
        self.phases.append(phase)

    def milliseconds(self) -> list[float]:
        """Returns the milliseconds of each of :data:`PHASES`, summed over micro-batches."""
        module = accelerator.device_module(self.device)
        if module:
            module.synchronize(self.device)
        totals = dict.fromkeys(PHASES, 0.0)
        for (start, end), phase in zip(itertools.pairwise(self.marks), self.phases[1:], strict=True):
            totals[REPORTED_PHASE[phase]] += start.elapsed_time(end) if module else 1000 * (end - start)
        return list(totals.values())
