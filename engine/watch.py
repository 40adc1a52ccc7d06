"""Warnings of what a person would see in the curves: a rank that is slow, a loss that jumps, throughput that falls."""

from __future__ import annotations

import logging
import re
import statistics
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Sequence

from utils import distributed

logger = logging.getLogger(__name__)

LINES = 20
"""Values by which a new one is judged, at most."""
LEAST = 10
"""Values that must be known before one is judged."""
STEPS = 10
"""A value is the mean over so many steps, at least."""
PATIENCE = 3
"""Values in a row that make a slow rank or low throughput."""
SPREADS = 6.0
SHARE = 0.2
RISE = 0.05
"""A loss jumps if it exceeds the median by SPREADS standard deviations (estimated by the median distance from the median), by
SHARE of the median, and by RISE. Close to zero, a few wrong examples multiply a loss, which needs no action."""
LOW = 0.7
"""Throughput is low below this share of its median."""
SLOW = 1.5
MATTERS = 0.05
"""A rank is slow if its own time is so many times the median of the other ranks, and exceeds it by this share of the step."""

RANKS = ("ranks/slowest", "ranks/slowest_s", "ranks/slowest_data_s", "ranks/median_s")
"""Names in ``metrics.jsonl``: the slowest rank, its own time, its wait for data within that, and the median own time of the
others, in seconds a step."""

TIMES = re.compile(r"ranks/(\d+)/(own_s|data_s)")


class Watch:
    """Judges the numbers of a run as they are logged. Every rank may call it; rank 0 warns.

    A loss and the throughput are compared with their own past, and a rank with the others. Where other parameters train than
    before, the past begins anew. ``elapsed_s``: total time of the steps of a run that is resumed.
    """

    def __init__(self, elapsed_s: float = 0.0) -> None:
        self._begin_anew(())
        self._slow_rank, self._slow_lines = -1, 0
        self._losses: list[float] = []
        self._speeds: list[float] = []
        self._rank_s: dict[str, float] = defaultdict(float)
        """Times of the ranks, in seconds of all steps that are not judged yet."""
        self._lined = 0
        """Losses that belong to earlier lines."""
        self._elapsed_s = elapsed_s

    def _begin_anew(self, frozen: Collection[str]) -> None:
        self._frozen = frozenset(frozen)
        self._loss, self._speed = _Past(_jumps, 1), _Past(_is_low, PATIENCE)

    def add(self, loss: float) -> None:
        """Take the loss of a step."""
        self._losses.append(loss)

    def line(
        self,
        step: int,
        times: dict[str, float],
        rates: dict[str, float],
        frozen: Collection[str],
        elapsed_s: float,
    ) -> dict[str, float]:
        """Judge what was logged since the last line; returns the line's numbers of the ranks, none of a single rank.

        Args:
            step: of the line.
            times: of the ranks, by the names of :meth:`~engine.rank_times.RankTimes.news`.
            rates: of the steps since the last line, by the names of :meth:`~engine.throughput.Throughput.rates`.
            frozen: parts of the model that were frozen: fewer than before where an encoder has thawed.
            elapsed_s: time of all steps.
        """
        if frozenset(frozen) != self._frozen:
            self._begin_anew(frozen)
        if "samples_per_s" in rates:
            self._speeds.append(rates["samples_per_s"])
        count = len(self._losses)
        for name, seconds in times.items():
            self._rank_s[name] += seconds * (count - self._lined)
        self._lined = count
        if count >= STEPS:
            self._judge(step, count, elapsed_s)
        return compared(times)

    def _judge(self, step: int, count: int, elapsed_s: float) -> None:
        """Judge the means over the last ``count`` steps."""
        self._judge_loss(step, statistics.fmean(self._losses))
        if self._speeds:
            self._judge_speed(step, statistics.fmean(self._speeds))
        if ranks := compared({name: seconds / count for name, seconds in self._rank_s.items()}):
            self._judge_ranks(step, ranks, (elapsed_s - self._elapsed_s) / count)
        self._losses, self._speeds, self._elapsed_s = [], [], elapsed_s
        self._rank_s, self._lined = defaultdict(float), 0

    def _judge_loss(self, step: int, loss: float) -> None:
        before = self._loss.add(loss)
        if before is not None:
            _warn(
                f"steps {step - len(self._losses) + 1} to {step}: the loss is {loss:.4g} on average, and was {before:.4g} before "
                "(median): look at grad_norm and the learning rate in metrics.jsonl"
            )

    def _judge_speed(self, step: int, speed: float) -> None:
        before = self._speed.add(speed)
        if before is not None:
            _warn(
                f"step {step}: {speed:.3g} samples/s, and the median before was {before:.3g}: look for other programs on the "
                "machines, for hot devices, and at data_wait in metrics.jsonl"
            )

    def _judge_ranks(self, step: int, ranks: dict[str, float], step_s: float) -> None:
        rank, own_s, median_s = int(ranks["ranks/slowest"]), ranks["ranks/slowest_s"], ranks["ranks/median_s"]
        if own_s < SLOW * median_s or own_s - median_s < MATTERS * step_s:
            self._slow_rank, self._slow_lines = -1, 0
            return
        self._slow_lines = self._slow_lines + 1 if rank == self._slow_rank else 1
        self._slow_rank = rank
        times, rest = divmod(self._slow_lines, PATIENCE)
        if rest == 0 and times & (times - 1) == 0:  # then after twice as many, and so on
            _warn(
                f"step {step}: rank {rank} is slow: {own_s:.3g} s for its own part of a step, "
                f"{ranks['ranks/slowest_data_s']:.3g} s of them waiting for data; the median of the other ranks is "
                f"{median_s:.3g} s. So it was in the last {self._slow_lines} of such comparisons"
            )


def pop_times(values: dict[str, float]) -> dict[str, float]:
    """Take the times of the ranks out of the numbers of a step."""
    return {name: values.pop(name) for name in list(values) if TIMES.fullmatch(name)}


def compared(times: dict[str, float]) -> dict[str, float]:
    """The numbers :data:`RANKS` of the ranks' own times; none of a single rank."""
    own = {int(match[1]): times[match[0]] for name in times if (match := TIMES.fullmatch(name)) and match[2] == "own_s"}
    if len(own) < 2:
        return {}
    slowest = max(own, key=lambda rank: own[rank])
    others = statistics.median(seconds for rank, seconds in own.items() if rank != slowest)
    return dict(zip(RANKS, (slowest, own[slowest], times[f"ranks/{slowest}/data_s"], others), strict=True))


class _Past:
    """The past of a value. Exceptions from it are no part of it, unless they last."""

    def __init__(self, is_exception: Callable[[float, Sequence[float]], bool], patience: int):
        self.is_exception, self.patience = is_exception, patience
        self.values: deque[float] = deque(maxlen=LINES)
        self.exceptions: list[float] = []

    def add(self, value: float) -> float | None:
        """Take a value; returns the median of the past if this is the exception that is to be told, else None."""
        if len(self.values) < LEAST or not self.is_exception(value, self.values):
            self.values.append(value)
            self.exceptions = []
            return None
        self.exceptions.append(value)
        if len(self.exceptions) == LINES:
            self.values.extend(self.exceptions)  # they fill it: so it is now
            self.exceptions = []
            return None
        return statistics.median(self.values) if len(self.exceptions) == self.patience else None


def _jumps(loss: float, past: Sequence[float]) -> bool:
    median = statistics.median(past)
    spread = 1.4826 * statistics.median(
        abs(value - median) for value in past
    )  # the factor is that of a normal distribution
    return loss - median > max(SPREADS * spread, SHARE * abs(median), RISE)


def _is_low(speed: float, past: Sequence[float]) -> bool:
    return speed < LOW * statistics.median(past)


def _warn(message: str) -> None:
    if distributed.rank() == 0:
        logger.warning("%s", message)
