"""The memory and the time of a training step, measured by taking it on a GPU."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn

from engine.memory import StepMemory, trainer_of
from engine.precision import Precision
from engine.train_config import TrainConfig
from optim import OptimConfig
from utils.batch import to_device

T = TypeVar("T")

WARM_UP, TIMED = 3, 5
"""Steps before the clock is started, and steps that it runs for."""

FULL = (
    "CUDA error: out of memory",
    "CUDA driver error: out of memory",
    "Triton Error [CUDA]: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)
"""What they say who ask the driver for memory by themselves: torch beside its allocator, compiled kernels, cuBLAS."""


def ran_out_of_memory(error: BaseException | None) -> bool:
    """Whether a GPU was full, whoever asked for memory, and whatever the error has become on its way: the compiler wraps it, and
    what is closed after it may fail too."""
    seen: list[BaseException] = []
    waiting = [error]
    while waiting:
        each = waiting.pop()
        if each is None or each in seen:
            continue
        if isinstance(each, torch.OutOfMemoryError):
            return True
        if isinstance(each, RuntimeError) and any(said in str(each) for said in FULL):
            return True
        seen.append(each)
        waiting += [getattr(each, "inner_exception", None), each.__cause__, each.__context__]
    return False


class Measured:
    """A model and its optimiser, with random weights, that take real steps.

    Args:
        build: the model.
        train, optim: the run's sections.
        device: a GPU with its index (the time can be measured on a CPU too).
        limit: bytes of the GPU that may be taken, what lies outside torch's allocator included; None: all there are.

    Raises:
        ValueError: if a GPU has no index, without which torch caps no memory.
    """

    def __init__(
        self,
        build: Callable[[], nn.Module],
        train: TrainConfig,
        optim: OptimConfig,
        device: torch.device,
        limit: int | None = None,
    ):
        if device.type == "cuda" and device.index is None:
            raise ValueError(f"{device} has no index; give torch.device('cuda', torch.cuda.current_device())")
        self.device, self.limit = device, limit
        self._cap()
        torch.manual_seed(0)
        self.trainer = trainer_of(build(), train, optim, device)
        self.records_graphs = train.records_graphs

    def memory(self, make_batch: Callable[[nn.Module], Any], *, gradients_stay: bool) -> StepMemory | None:
        """Of a step on one micro-batch, ``gradients_stay`` as in :meth:`~engine.memory.Rehearsal.memory`; None: it does not fit.

        Gradients that stay are measured by a second micro-batch. Where the compiler records graphs, which take one alone, their
        bytes are added instead: a little too much, since some are there at the peak.
        """
        batch = make_batch(self.trainer.model)
        adds = gradients_stay and self.records_graphs
        batches = [batch] * (2 if gradients_stay and not adds else 1)
        found = self._tried(lambda: self._peak(batches))
        if found is None:
            return None
        learned = [each for each in self.trainer.model.parameters() if each.requires_grad]
        weights, gradients = (sum(p.numel() * p.element_size() for p in each) for each in (self._kept(), learned))
        found += gradients if adds else 0
        return StepMemory(weights, gradients, 2 * gradients, found - weights - 3 * gradients)

    def seconds(self, make_batch: Callable[[nn.Module], Any]) -> float | None:
        """Of a step on one micro-batch that is on the device already, once the first steps are over; None: it does not fit."""
        batch = make_batch(self.trainer.model)
        return self._tried(lambda: self._time(batch))

    def outside(self) -> int:
        """Bytes of the GPU that are taken and not by torch's allocator: CUDA's context, the kernels that have been loaded so
        far, and other programs."""
        free, total = torch.cuda.mem_get_info(self.device)
        return total - free - torch.cuda.memory_reserved(self.device)

    def _peak(self, batches: list[Any]) -> int:
        """The most bytes of torch's allocator in a step whose optimiser has its states and whose code is compiled."""
        # Twice: in a run, the copies for the next step are made beside this one.
        on_device, _ahead = ([to_device(batch, self.trainer.device) for batch in batches] for _ in range(2))
        for _ in range(3 if self.records_graphs else 2):  # graphs are recorded in the second
            # The peak starts from what is kept now, so nothing is that a step left, or the tuning of its kernels.
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)
            self.trainer.train_step(batches, on_device)
        torch.cuda.synchronize(self.device)
        return torch.cuda.max_memory_reserved(self.device)

    def _time(self, batch: Any) -> float:
        # Once: in a run, the copy is made beside the step before.
        on_device = [to_device(batch, self.trainer.device)]
        for _ in range(WARM_UP):
            self.trainer.train_step([batch], on_device)
        started = self._now()
        for _ in range(TIMED):
            self.trainer.train_step([batch], on_device)
        return (self._now() - started) / TIMED

    def _tried(self, steps: Callable[[], T]) -> T | None:
        """What ``steps`` gives, taken as if they were the first; None: the GPU was full."""
        self._clean_up()
        try:
            return steps()
        except Exception as error:
            if not ran_out_of_memory(error):
                raise
        # Not within `except`: an error keeps the frames that it came through, and they keep the step's tensors. The optimiser
        # may have a part of its states, and the loss scaler is in the middle of a step.
        self.trainer.optimizer.state.clear()
        self.trainer.precision = Precision(self.trainer.config.precision, self.trainer.device)
        self._clean_up()
        return None

    def _clean_up(self) -> None:
        """Give back what earlier steps left, and cap what torch may take now."""
        self.trainer.optimizer.zero_grad(set_to_none=True)
        if self.trainer.config.compile:
            torch._dynamo.reset()  # each size has a shape of its own, and the compiler stops after a few
        gc.collect()
        torch.cuda.empty_cache()
        self._cap()

    def _cap(self) -> None:
        """Leave torch's allocator what the limit has beside what lies outside, which grows when kernels are loaded."""
        if self.limit is not None:
            there = torch.cuda.get_device_properties(self.device).total_memory
            share = max(0, self.limit - self.outside()) / there
            torch.cuda.set_per_process_memory_fraction(min(1.0, share), self.device)

    def _kept(self) -> list[torch.Tensor]:
        return [*self.trainer.model.parameters(), *self.trainer.model.buffers()]

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()
