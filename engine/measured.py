"""The memory and the time of a training step, measured by taking it on a GPU."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from engine.memory import StepMemory, trainer_of
from engine.trainer import TrainConfig
from optim import OptimConfig

WARM_UP, TIMED = 3, 5
"""Steps before the clock is started, and steps that it runs for."""


class Measured:
    """A model and its optimiser, with random weights, that take real steps.

    Args:
        build: the model.
        train, optim: the run's sections.
        device: a GPU (the time can be measured on a CPU too).
        limit: bytes that the process may take; None: all there are.
    """

    def __init__(
        self,
        build: Callable[[], nn.Module],
        train: TrainConfig,
        optim: OptimConfig,
        device: torch.device,
        limit: int | None = None,
    ):
        self.device = device
        if limit is not None:
            there = torch.cuda.get_device_properties(device).total_memory
            torch.cuda.set_per_process_memory_fraction(min(1.0, limit / there), device)
        torch.manual_seed(0)
        self.trainer = trainer_of(build(), train, optim, device)

    def memory(self, make_batch: Callable[[nn.Module], Any], *, gradients_stay: bool) -> StepMemory | None:
        """Of a step on one micro-batch, or with ``gradients_stay`` on two of them; None: it does not fit."""
        batches = [make_batch(self.trainer.model)] * (2 if gradients_stay else 1)
        if self.trainer.config.compile:
            torch._dynamo.reset()  # each size has a shape of its own, and the compiler stops after a few
        try:
            for _ in range(2):  # the optimiser has its states after the first
                torch.cuda.reset_peak_memory_stats(self.device)
                self.trainer.train_step(batches)
            torch.cuda.synchronize(self.device)
        except torch.OutOfMemoryError:
            self.trainer.optimizer.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()
            return None
        learned = [each for each in self.trainer.model.parameters() if each.requires_grad]
        weights, gradients = (sum(p.numel() * p.element_size() for p in each) for each in (self._kept(), learned))
        found = torch.cuda.max_memory_reserved(self.device)
        return StepMemory(weights, gradients, 2 * gradients, found - weights - 3 * gradients)

    def seconds(self, make_batch: Callable[[nn.Module], Any]) -> float:
        """Of a step on one micro-batch, once the first ones are over."""
        batch = make_batch(self.trainer.model)
        for _ in range(WARM_UP):
            self.trainer.train_step([batch])
        started = self._now()
        for _ in range(TIMED):
            self.trainer.train_step([batch])
        return (self._now() - started) / TIMED

    def _kept(self) -> list[torch.Tensor]:
        return [*self.trainer.model.parameters(), *self.trainer.model.buffers()]

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()
