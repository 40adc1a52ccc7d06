"""Runs training steps on a device, and measures their memory and time."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
from torch import nn

from batches.base import to_device
from engine.config import TrainConfig
from engine.precision import Precision
from engine.steps import chunks_of, trainer_of
from optim.config import OptimConfig
from tools.steps.clock import Clock
from tools.steps.fake import StepMemory, trainable
from tools.steps.other_ranks import simulated_ranks
from utils.tensors import tensor_bytes

T = TypeVar("T")

WARM_UP, TIMED = 3, 5
"""Number of steps before and during the time measurement."""

OUT_OF_MEMORY = (
    "CUDA error: out of memory",
    "CUDA driver error: out of memory",
    "Triton Error [CUDA]: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)
"""Messages of code that allocates GPU memory outside torch's allocator: other parts of torch, compiled kernels, cuBLAS."""


def ran_out_of_memory(error: BaseException | None) -> bool:
    """Returns True if the error was caused by a lack of GPU memory.

    The whole chain of exceptions is searched, because the compiler wraps errors, and cleanup after an error may raise another
    one.
    """
    visited: list[BaseException] = []
    queue = [error]
    while queue:
        current = queue.pop()
        if current is None or current in visited:
            continue
        if isinstance(current, torch.OutOfMemoryError):
            return True
        if isinstance(current, RuntimeError) and any(message in str(current) for message in OUT_OF_MEMORY):
            return True
        visited.append(current)
        queue += [getattr(current, "inner_exception", None), current.__cause__, current.__context__]
    return False


class RealSteps:
    """Runs real steps of a model. :class:`tools.steps.fake.FakeSteps` estimates steps instead.

    Args:
        model: the model; the steps change its weights.
        train, optim: the sections of the run's config.
        device: a GPU with its index, or a CPU, on which memory cannot be measured.
        limit: maximum GPU memory in bytes, including memory outside torch's allocator; None for no limit.

    Raises:
        ValueError: if a GPU has no index, which torch needs to limit its memory.
    """

    def __init__(
        self,
        model: nn.Module,
        train: TrainConfig,
        optim: OptimConfig,
        device: torch.device,
        limit: int | None = None,
    ):
        if device.type == "cuda" and device.index is None:
            raise ValueError(f"{device} has no index; pass torch.device('cuda', torch.cuda.current_device())")
        self.device, self.limit = device, limit
        self._cap()
        self.trainer = trainer_of(model, train, optim, device)
        self.captures_graphs = train.captures_graphs

    def metrics(self, batch: Any) -> dict[str, float]:
        """Takes a step on a micro-batch, and returns its losses and the norm of the gradient."""
        return self.trainer.train_step([batch]).read().metrics

    def memory(
        self, make_batch: Callable[[nn.Module], Any], *, gradients_stay: bool, ranks: int = 1
    ) -> StepMemory | None:
        """Returns the memory of a step on one micro-batch, or on all micro-batches that a loss spans, or None if the step does
        not fit.

        The arguments are those of :meth:`tools.steps.fake.FakeSteps.memory`. With ``gradients_stay``, the step has a second
        micro-batch. CUDA graphs allow only one micro-batch, so the bytes of the gradients are added instead. This is a slight
        overestimate, because some gradients exist at the peak anyway.
        """
        batch = make_batch(self.trainer.model)
        adds_gradients = gradients_stay and self.captures_graphs
        fewest = 2 if gradients_stay and not adds_gradients else 1
        batches = [batch] * max(fewest, chunks_of(self.trainer.model))
        with simulated_ranks(ranks):
            peak = self._run_fresh(lambda: self._peak(batches))
        if peak is None:
            return None
        model = self.trainer.model
        weights = tensor_bytes([*model.parameters(), *model.buffers()])
        gradients = tensor_bytes(trainable(model))
        peak += gradients if adds_gradients else 0
        average = tensor_bytes(self.trainer.trained.average.tensors)
        return StepMemory(weights, gradients, 2 * gradients, peak - weights - 3 * gradients - average, average)

    def seconds(self, make_batch: Callable[[nn.Module], Any]) -> float | None:
        """Returns the duration in seconds of a step on one micro-batch that is already on the device, after warm-up steps, or
        None if the step does not fit."""
        batch = make_batch(self.trainer.model)
        return self._run_fresh(lambda: self._time(batch))

    def clocked(self, batches: list[Any], context: AbstractContextManager[Any] | None = None) -> Clock:
        """Takes a step and returns its clock, which has the time of each phase. As in training, the host does not wait for the
        device.

        Args:
            batches: micro-batches of the step on the host, in pinned memory for a GPU. Copying them is the phase "data".
            context: everything except copying the data runs within this context.
        """
        clock = Clock(self.device)
        on_device = [to_device(batch, self.device) for batch in batches]
        clock.mark("data")
        self.trainer.after_phase = clock.mark
        with context or nullcontext():
            self.trainer.train_step(batches, on_device)
        return clock

    def outside(self) -> int:
        """Returns the number of bytes of GPU memory outside torch's allocator: CUDA's context, the kernels loaded so far, and
        other programs."""
        free, total = torch.cuda.mem_get_info(self.device)
        return total - free - torch.cuda.memory_reserved(self.device)

    def _peak(self, batches: list[Any]) -> int:
        """Returns the peak number of bytes of torch's allocator in a step with optimiser states and compiled code."""
        # Two copies, because in a run, the batch for the next step is copied during this step.
        on_device, _ahead = ([to_device(batch, self.trainer.device) for batch in batches] for _ in range(2))
        for _ in range(3 if self.captures_graphs else 2):  # graphs are captured in the second step
            # The peak counter starts at the memory in use, which must not include leftovers of a step or of kernel tuning.
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)
            self.trainer.train_step(batches, on_device)
        torch.cuda.synchronize(self.device)
        return torch.cuda.max_memory_reserved(self.device)

    def _time(self, batch: Any) -> float:
        # Copied before timing, because in a run, the copy is made during the previous step.
        on_device = [to_device(batch, self.trainer.device)]
        for _ in range(WARM_UP):
            self.trainer.train_step([batch], on_device)
        started = self._now()
        for _ in range(TIMED):
            self.trainer.train_step([batch], on_device)
        return (self._now() - started) / TIMED

    def _run_fresh(self, steps: Callable[[], T]) -> T | None:
        """Runs ``steps`` from a clean state and returns the result, or None if the GPU is full."""
        self._clean_up()
        try:
            return steps()
        except Exception as error:
            if not ran_out_of_memory(error):
                raise
        # Not inside `except`: the error references the frames that raised it, and these reference the step's tensors. The
        # optimiser may have only some of its states, and the loss scaler is in the middle of a step.
        self.trainer.trained.optimizer.state.clear()
        self.trainer.precision = Precision(self.trainer.config.precision, self.trainer.device)
        self._clean_up()
        return None

    def _clean_up(self) -> None:
        """Frees the memory of previous steps, and limits torch's allocator again."""
        self.trainer.trained.optimizer.zero_grad(set_to_none=True)
        if self.trainer.config.compile:
            torch._dynamo.reset()  # each size is a new shape, and the compiler gives up after a few shapes
        gc.collect()
        torch.cuda.empty_cache()
        self._cap()

    def _cap(self) -> None:
        """Limits torch's allocator to ``limit`` minus the memory outside it, which grows as kernels are loaded."""
        if self.limit is not None:
            total = torch.cuda.get_device_properties(self.device).total_memory
            fraction = max(0, self.limit - self.outside()) / total
            torch.cuda.set_per_process_memory_fraction(min(1.0, fraction), self.device)

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()
