"""How long each rank takes for its own part of a step. Ranks tell it with the sum of their losses: no step waits for it."""

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
    """Own time of this rank: its wait for data, and its forward passes without its waits for other ranks in them.

    The backward pass is left out: in it, ranks wait for each other's gradients. On a GPU, forward passes are timed by events on
    the device, which are read once they are over. A single rank measures its wait for data alone.

    Args:
        device: of the forward passes.
        log_every: steps between lines of metrics.
        steps: of the run; its last one has a line too.
    """

    def __init__(self, device: torch.device, log_every: int, steps: int):
        self.log_every, self.steps = log_every, steps
        self.data_wait_s = 0.0
        """Wait for the micro-batches of the newest step."""
        self._now: Callable[[], Any] = (
            partial(_recorded_event, module) if (module := device_module(device)) else time.perf_counter
        )
        self._began: Any = None
        """The moment at which the present forward pass began; None outside of forward passes."""
        self._spans: deque[tuple[float, Any, Any]] = deque()
        """Sign, beginning and end of times that are not added up yet."""
        self._forward_s = self._waited_s = 0.0
        self._steps = 0
        self.alone = distributed.world_size() == 1

    def noting_waits(self) -> AbstractContextManager[None]:
        """Inside, waits for other ranks in forward passes are left out of this rank's own time."""
        return nullcontext() if self.alone else distributed.noting_waits(self._waiting_for_ranks)

    @contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        """Inside, this rank waits for the micro-batches of a step."""
        started = time.perf_counter()
        yield
        self.data_wait_s = time.perf_counter() - started
        self._waited_s += self.data_wait_s
        self._steps += 1

    def reached(self, phase: str) -> None:
        """The host is through with a phase of the step."""
        if self.alone:
            return
        if phase in ("work", "backward"):  # the forward pass of a micro-batch follows
            self._began = self._now()
        elif phase == "clip":  # none followed
            self._began = None
        elif phase == "losses":
            self._spans.append((1.0, self._began, self._now()))
            self._began = None
            self._add_up()

    def news(self, asked: bool, step: int, like: Tensor) -> tuple[list[str], Tensor]:
        """Numbers of this rank to be summed over ranks, with their names.

        They are whether it was asked to stop, and in a step with a line of metrics also, for each rank, its own time and its wait
        for data, in seconds a step since the line before: zeros for the other ranks.
        """
        if self.alone or (step % self.log_every and step != self.steps):
            return ["asked"], like.new_full((1,), float(asked))
        forward_s, data_s = self._means()
        numbers, names = [float(asked)], ["asked"]
        for rank in range(distributed.world_size()):
            names += [f"ranks/{rank}/own_s", f"ranks/{rank}/data_s"]
            numbers += [forward_s + data_s, data_s] if rank == distributed.rank() else [0.0, 0.0]
        return names, send(torch.tensor(numbers, dtype=like.dtype), like.device)

    def _add_up(self) -> None:
        """Add up the times that are over: on a GPU, those of the newest steps are not."""
        while self._spans and _is_over(self._spans[0][2]):
            sign, began, ended = self._spans.popleft()
            self._forward_s += sign * _seconds(began, ended)

    def _means(self) -> tuple[float, float]:
        """Seconds of a step in forward passes and in waits for data, since the last call."""
        self._add_up()
        steps = max(1, self._steps)
        means = max(0.0, self._forward_s / steps), self._waited_s / steps
        self._forward_s = self._waited_s = 0.0
        self._steps = 0
        return means

    @contextmanager
    def _waiting_for_ranks(self) -> Iterator[None]:
        """Inside, this rank waits for other ranks."""
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
