"""Warns about problems that would be visible in plots of the metrics: a slow rank, a jump in the loss, or a drop in throughput.

Ranks exchange the times that they spend on their own work in the all-reduce of the losses, so measuring adds no synchronisation.
"""

from __future__ import annotations

import logging
import re
import statistics
import time
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from utils import distributed
from utils.accelerator import device_module

logger = logging.getLogger(__name__)

MAX_HISTORY = 20
"""Maximum number of previous values that a new value is compared with."""
MIN_HISTORY = 10
"""Minimum number of previous values needed for a comparison."""
MIN_STEPS = 10
"""Each compared value is a mean over at least this many steps."""
PATIENCE = 3
"""Number of consecutive values after which a slow rank or low throughput is reported."""
MIN_DEVIATIONS = 6.0
MIN_FRACTION = 0.2
MIN_RISE = 0.05
"""A loss counts as a jump if it exceeds the median by MIN_DEVIATIONS standard deviations (estimated from the median absolute
deviation), by MIN_FRACTION of the median, and by MIN_RISE. MIN_RISE prevents warnings when the loss is close to zero and a few
wrong examples increase it several-fold."""
LOW_FRACTION = 0.7
"""Throughput is low if it is below this fraction of its median."""
SLOW_FACTOR = 1.5
SLOW_FRACTION = 0.05
"""A rank is slow if the time for its own work is at least SLOW_FACTOR times the median of the other ranks, and exceeds this
median by at least SLOW_FRACTION of the step time."""

RANKS = ("ranks/slowest", "ranks/slowest_s", "ranks/slowest_data_s", "ranks/median_s")
"""Names in ``metrics.jsonl``: the slowest rank, the time for its own work, how much of this time it spent waiting for data, and
the median time of the other ranks. Times are in seconds per step."""

TIMES = re.compile(r"ranks/(\d+)/(own_s|data_s)")


class RankTimes:
    """Measures the time that this rank spends on its own work in a step: waiting for data and running forward passes, excluding
    waits for other ranks.

    The backward pass is excluded, because ranks wait for each other's gradients in it. On a GPU, forward passes are timed with
    events, which are read after they have completed. With a single rank, only the wait for data is measured.

    Args:
        device: device that runs the forward passes.
        log_every: number of steps between lines of ``metrics.jsonl``.
        steps: number of steps of the run. The last step is always logged.
    """

    def __init__(self, device: torch.device, log_every: int, steps: int):
        self.log_every, self.steps = log_every, steps
        self.data_waits_s: list[float] = []
        """Time spent waiting for the micro-batches of each step since the last logged step."""
        self._now: Callable[[], Any] = (
            partial(_recorded_event, module) if (module := device_module(device)) else time.perf_counter
        )
        self._began: Any = None
        """Start of the current forward pass, as an event or a time; None outside forward passes."""
        self._spans: deque[tuple[float, Any, Any]] = deque()
        """Intervals that have not been added up yet, as (sign, start, end)."""
        self._forward_s = 0.0
        self.single_rank = distributed.world_size() == 1

    def begin_forward(self) -> None:
        """Records that the forward pass of a micro-batch begins."""
        if not self.single_rank:
            self._began = self._now()

    def end_forward(self) -> None:
        """Records that the losses of the micro-batch have been computed."""
        if not self.single_rank:
            self._spans.append((1.0, self._began, self._now()))
            self._began = None
            self._add_up()

    def values_to_sum(self, step: int) -> dict[str, float]:
        """Returns the values that this rank adds to the sum over all ranks, by name.

        If the step is logged, there are two values per rank: the time that the rank spent on its own work, and how much of this
        time it waited for data, in seconds per step since the previous logged step. Each rank returns zeros for the other ranks,
        so that the sum contains the values of all ranks.
        """
        if step % self.log_every and step != self.steps:
            return {}
        steps, data_waits_s = max(1, len(self.data_waits_s)), sum(self.data_waits_s)
        self.data_waits_s = []
        if self.single_rank:
            return {}
        self._add_up()
        forward_s, data_s = max(0.0, self._forward_s / steps), data_waits_s / steps
        self._forward_s = 0.0
        values: dict[str, float] = {}
        for rank in range(distributed.world_size()):
            own_s = (forward_s + data_s, data_s) if rank == distributed.rank() else (0.0, 0.0)
            values |= zip((f"ranks/{rank}/own_s", f"ranks/{rank}/data_s"), own_s, strict=True)
        return values

    def _add_up(self) -> None:
        """Adds up the intervals that have ended. On a GPU, the intervals of the latest steps may still be running."""
        while self._spans:
            sign, began, ended = self._spans[0]
            is_time = isinstance(ended, float)  # on the CPU
            if not is_time and not ended.query():
                return
            self._forward_s += sign * (ended - began if is_time else began.elapsed_time(ended) / 1000)
            self._spans.popleft()

    @contextmanager
    def waiting_for_ranks(self) -> Iterator[None]:
        """Context in which this rank waits for other ranks; its duration is subtracted from the forward pass."""
        if self._began is None:
            yield
            return
        started = self._now()
        yield
        self._spans.append((-1.0, started, self._now()))


class Watch:
    """Checks the metrics of a run as they are logged. All ranks can use this class, but only rank 0 logs warnings.

    The loss and the throughput are compared with their previous values, and each rank is compared with the other ranks. When an
    encoder is unfrozen, the previous values are discarded.

    Args:
        elapsed_s: total time of the steps before this process resumed the run.
    """

    def __init__(self, elapsed_s: float = 0.0) -> None:
        self._frozen: frozenset[str] | None = None
        self._loss, self._speed = History(_jumps, 1), History(_is_low, PATIENCE)
        self._slow_rank, self._slow_lines = -1, 0
        self.losses: list[float] = []
        """Losses of the steps since the last check. The caller adds the loss of each step."""
        self._speeds: list[float] = []
        self._rank_s: dict[str, float] = defaultdict(float)
        """Times of the ranks, in seconds, summed over all steps since the last check."""
        self._logged = 0
        """Number of losses that were already covered by previous lines of metrics."""
        self._elapsed_s = elapsed_s

    def line(
        self,
        step: int,
        times: dict[str, float],
        rates: dict[str, float],
        frozen: Collection[str],
        elapsed_s: float,
    ) -> dict[str, float]:
        """Checks the steps since the last line of metrics. Returns the values :data:`RANKS` for the new line; empty for a single
        rank.

        Args:
            step: step of the line.
            times: times of the ranks, with the names from :meth:`RankTimes.values_to_sum`.
            rates: rates over the steps since the last line, as returned by :meth:`~engine.report.Throughput.rates`.
            frozen: the frozen encoders. If they have changed, an encoder was unfrozen.
            elapsed_s: total time of all steps.
        """
        if frozenset(frozen) != self._frozen:
            self._frozen = frozenset(frozen)
            self._loss, self._speed = History(_jumps, 1), History(_is_low, PATIENCE)
        if "samples_per_s" in rates:
            self._speeds.append(rates["samples_per_s"])
        count = len(self.losses)
        for name, seconds in times.items():
            self._rank_s[name] += seconds * (count - self._logged)
        self._logged = count
        if count >= MIN_STEPS:
            self._check(step, count, elapsed_s)
        return compare_ranks(times)

    def _check(self, step: int, count: int, elapsed_s: float) -> None:
        """Checks the means over the last ``count`` steps."""
        self._check_loss(step, statistics.fmean(self.losses))
        if self._speeds:
            self._check_speed(step, statistics.fmean(self._speeds))
        if ranks := compare_ranks({name: seconds / count for name, seconds in self._rank_s.items()}):
            self._check_ranks(step, ranks, (elapsed_s - self._elapsed_s) / count)
        self.losses, self._speeds, self._elapsed_s = [], [], elapsed_s
        self._rank_s, self._logged = defaultdict(float), 0

    def _check_loss(self, step: int, loss: float) -> None:
        before = self._loss.add(loss)
        if before is not None:
            _warn(
                f"steps {step - len(self.losses) + 1} to {step}: the mean loss is {loss:.4g}, but its previous median "
                f"was {before:.4g}; check grad_norm and the learning rate in metrics.jsonl"
            )

    def _check_speed(self, step: int, speed: float) -> None:
        before = self._speed.add(speed)
        if before is not None:
            _warn(
                f"step {step}: throughput is {speed:.3g} samples/s, but its previous median was {before:.3g}; check "
                "for other programs on the machines and overheating devices, and check data_wait in metrics.jsonl"
            )

    def _check_ranks(self, step: int, ranks: dict[str, float], step_s: float) -> None:
        rank, own_s, median_s = int(ranks["ranks/slowest"]), ranks["ranks/slowest_s"], ranks["ranks/median_s"]
        if own_s < SLOW_FACTOR * median_s or own_s - median_s < SLOW_FRACTION * step_s:
            self._slow_rank, self._slow_lines = -1, 0
            return
        self._slow_lines = self._slow_lines + 1 if rank == self._slow_rank else 1
        self._slow_rank = rank
        rounds, remainder = divmod(self._slow_lines, PATIENCE)
        # Warns after PATIENCE lines, then after 2 * PATIENCE, 4 * PATIENCE, ...
        if remainder == 0 and rounds & (rounds - 1) == 0:
            _warn(
                f"step {step}: rank {rank} is slow: it takes {own_s:.3g} s per step for its own work, including "
                f"{ranks['ranks/slowest_data_s']:.3g} s of waiting for data; the median of the other ranks is "
                f"{median_s:.3g} s; it was the slowest rank in the last {self._slow_lines} comparisons"
            )


def compare_ranks(times: dict[str, float]) -> dict[str, float]:
    """Computes the values :data:`RANKS` from the times that the ranks spent on their own work. Returns an empty dictionary for a
    single rank."""
    own_s = {
        int(match[1]): times[match[0]] for name in times if (match := TIMES.fullmatch(name)) and match[2] == "own_s"
    }
    if len(own_s) < 2:
        return {}
    slowest = max(own_s, key=lambda rank: own_s[rank])
    others_s = statistics.median(seconds for rank, seconds in own_s.items() if rank != slowest)
    return dict(zip(RANKS, (slowest, own_s[slowest], times[f"ranks/{slowest}/data_s"], others_s), strict=True))


@dataclass
class History:
    """The history of a value. Outliers are excluded from the history, unless they persist.

    Attributes:
        is_outlier: returns True if a value is an outlier, given the values before it.
        patience: number of outliers in a row after which the value has changed.
    """

    is_outlier: Callable[[float, Sequence[float]], bool]
    patience: int
    values: deque[float] = field(default_factory=lambda: deque(maxlen=MAX_HISTORY))
    outliers: list[float] = field(default_factory=list)

    def add(self, value: float) -> float | None:
        """Adds a value. Returns the median of the history if ``patience`` outliers in a row have now been seen, else None."""
        if len(self.values) < MIN_HISTORY or not self.is_outlier(value, self.values):
            self.values.append(value)
            self.outliers = []
            return None
        self.outliers.append(value)
        if len(self.outliers) == MAX_HISTORY:
            self.values.extend(self.outliers)  # the outliers have become the normal level
            self.outliers = []
            return None
        return statistics.median(self.values) if len(self.outliers) == self.patience else None


def _jumps(loss: float, history: Sequence[float]) -> bool:
    median = statistics.median(history)
    # The factor converts the median absolute deviation of a normal distribution to its standard deviation.
    deviation = 1.4826 * statistics.median(abs(value - median) for value in history)
    return loss - median > max(MIN_DEVIATIONS * deviation, MIN_FRACTION * abs(median), MIN_RISE)


def _is_low(speed: float, history: Sequence[float]) -> bool:
    return speed < LOW_FRACTION * statistics.median(history)


def _warn(message: str) -> None:
    if distributed.rank() == 0:
        logger.warning("%s", message)


def _recorded_event(module: Any) -> Any:
    event = module.Event(enable_timing=True)
    event.record()
    return event
