"""Times the trainer's steps by phase."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch

from batches.base import to_device
from batches.pretraining import PretrainBatch
from engine.trainer import Trainer
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


class Stepper:
    """Runs and times steps of a trainer.

    Args:
        trainer: the trainer, with its model.
        batches: micro-batches to cycle through, on the host; in pinned memory for a GPU.
        accumulate: micro-batches per step.
    """

    def __init__(self, trainer: Trainer, batches: Sequence[PretrainBatch], accumulate: int):
        self.trainer, self.accumulate = trainer, accumulate
        self.batches = itertools.cycle(batches)

    def step(self, context: AbstractContextManager[Any]) -> Clock:
        """Runs a step and returns its clock. Everything except copying the data to the device runs within ``context``."""
        device = self.trainer.device
        micro_batches = [next(self.batches) for _ in range(self.accumulate)]
        clock = Clock(device)
        on_device = [to_device(batch, device) for batch in micro_batches]
        clock.mark("data")
        self.trainer.after_phase = clock.mark
        with context:
            self.trainer.train_step(micro_batches, on_device)
        return clock

    def milliseconds(self, steps: int, context: Callable[[], AbstractContextManager[Any]]) -> list[list[float]]:
        """Runs steps and returns the milliseconds of each phase, indexed by step and phase. As in training, the host runs ahead
        of the device."""
        clocks = [self.step(context()) for _ in range(steps)]
        return [clock.milliseconds() for clock in clocks]
