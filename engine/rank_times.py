"""Measures how long each rank spends on its own work in a step.

Ranks exchange these times in the all-reduce of the losses, so measuring adds no synchronisation.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor

from utils import distributed
from utils.accelerator import device_module, send


class RankTimes:
    """Measures the time that this rank spends on its own work: waiting for data and running forward passes, excluding waits for
    other ranks.

    The backward pass is excluded, because ranks wait for each other's gradients in it. On a GPU, forward passes are timed with
    events, which are read after they have completed. With a single rank, only the wait for data is measured.

    Args:
        device: device that runs the forward passes.
        log_every: number of steps between lines of ``metrics.jsonl``.
        steps: number of steps of the run. The last step is always logged.
    """

    def __init__(self, device: torch.device, log_every: int, steps: int):
        self.log_every, self.steps = log_every, steps
        self.data_wait_s = 0.0
        """Time spent waiting for the micro-batches of the latest step."""
        self._now: Callable[[], Any] = (
            partial(_recorded_event, module) if (module := device_module(device)) else time.perf_counter
        )
        self._began: Any = None
        """Start of the current forward pass, as an event or a time; None outside forward passes."""
        self._spans: deque[tuple[float, Any, Any]] = deque()
        """Intervals that have not been added up yet, as (sign, start, end)."""
        self._forward_s = self._waited_s = 0.0
        self._steps = 0
        self.single_rank = distributed.world_size() == 1

    def recording_waits(self) -> AbstractContextManager[None]:
        """Context that measures waits for other ranks and excludes them from the time of this rank's forward passes."""
        return nullcontext() if self.single_rank else distributed.recording_waits(self._waiting_for_ranks)

    @contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        """Context that measures the wait for the micro-batches of a step."""
        started = time.perf_counter()
        yield
        self.data_wait_s = time.perf_counter() - started
        self._waited_s += self.data_wait_s
        self._steps += 1

    def reached(self, phase: str) -> None:
        """Records that the host has finished a phase of the step."""
        if self.single_rank:
            return
        if phase in ("work", "backward"):  # the forward pass of a micro-batch follows
            self._began = self._now()
        elif phase == "clip":  # the last backward pass is not followed by a forward pass
            self._began = None
        elif phase == "losses":
            self._spans.append((1.0, self._began, self._now()))
            self._began = None
            self._add_up()

    def values_to_sum(self, stop_requested: bool, step: int, like: Tensor) -> tuple[list[str], Tensor]:
        """Returns the names and values that this rank adds to the sum over all ranks.

        The first value is 1 if this rank was asked to stop. If the step is logged, two values per rank follow: the time that the
        rank spent on its own work, and how much of this time it waited for data, in seconds per step since the previous logged
        step. Each rank returns zeros for the other ranks, so that the sum contains the values of all ranks.
        """
        if self.single_rank or (step % self.log_every and step != self.steps):
            return ["stop_requested"], like.new_full((1,), float(stop_requested))
        forward_s, data_s = self._means()
        values, names = [float(stop_requested)], ["stop_requested"]
        for rank in range(distributed.world_size()):
            names += [f"ranks/{rank}/own_s", f"ranks/{rank}/data_s"]
            values += [forward_s + data_s, data_s] if rank == distributed.rank() else [0.0, 0.0]
        return names, send(torch.tensor(values, dtype=like.dtype), like.device)

    def _add_up(self) -> None:
        """Adds up the intervals that have ended. On a GPU, the intervals of the latest steps may still be running."""
        while self._spans and _is_over(self._spans[0][2]):
            sign, began, ended = self._spans.popleft()
            self._forward_s += sign * _seconds(began, ended)

    def _means(self) -> tuple[float, float]:
        """Returns the mean seconds per step in forward passes and in waits for data, since the last call."""
        self._add_up()
        steps = max(1, self._steps)
        means = max(0.0, self._forward_s / steps), self._waited_s / steps
        self._forward_s = self._waited_s = 0.0
        self._steps = 0
        return means

    @contextmanager
    def _waiting_for_ranks(self) -> Iterator[None]:
        """Context in which this rank waits for other ranks; its duration is subtracted from the forward pass."""
        if self._began is None:
            yield
            return
        started = self._now()
        yield
        self._spans.append((-1.0, started, self._now()))


def _recorded_event(module: Any) -> Any:
    event = module.Event(enable_timing=True)
    event.record()
    return event


def _is_over(moment: Any) -> bool:
    return isinstance(moment, float) or bool(moment.query())


def _seconds(began: Any, ended: Any) -> float:
    return ended - began if isinstance(began, float) else began.elapsed_time(ended) / 1000
