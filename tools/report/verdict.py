"""Determines which of several runs or groups is best in the selection metric, by how much, and whether the difference exceeds the
noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from tasks.evaluation import Metric
from tools.report.groups import Group, Spread
from tools.report.metrics import files_of, lower_is_better
from tools.runs.reading import Run

LEVEL = 0.95
Noise = Literal["seeds", "intervals", "examples", "unknown"]
"""What the margin of a difference is computed from: the spread over seeds, the bootstrap intervals of the metrics, the number of
test examples, or nothing."""


@dataclass(frozen=True)
class Side:
    """A group in a verdict.

    Attributes:
        half_interval: half the width of the metric's 95% interval, averaged over the group's runs.
        examples: number of test examples.
    """

    name: str
    colour: int
    spread: Spread
    half_interval: float | None = None
    examples: int | None = None


@dataclass(frozen=True)
class Gap:
    """How far a side is behind the best side.

    Attributes:
        margin: half the width of the difference's 95% interval; None if unknown.
    """

    side: Side
    difference: float
    noise: Noise
    margin: float | None

    @property
    def clear(self) -> bool | None:
        """Whether the difference exceeds the noise; None if the noise is unknown."""
        return None if self.margin is None else self.difference > self.margin


@dataclass(frozen=True)
class Verdict:
    """The comparison of one metric on one split.

    Attributes:
        gaps: the other sides, ordered from good to bad.
        unit: unit of the metric in ``evaluation.json``.
        missing: groups in which no run has measured the metric.
    """

    split: str
    metric: str
    unit: str
    best: Side
    gaps: list[Gap]
    missing: list[str]


def verdicts(groups: Sequence[Group]) -> list[Verdict]:
    """Returns a verdict for each split on which at least two groups have measured the same metric on the same files.

    If there is only one group, its verdicts have no gaps, but contain the metric and its spread over the seeds.
    """
    found = []
    for split in dict.fromkeys(split for group in groups for run in group.runs for split in run.evaluation):
        verdict = _verdict(groups, split)
        if verdict is not None:
            found.append(verdict)
    return found


def gap(best: Side, other: Side) -> Gap:
    """Compares two sides. With several seeds on both sides, the margin comes from Welch's t-test; otherwise it is computed from
    the intervals of both metrics, or from the numbers of test examples behind both proportions."""
    difference = abs(best.spread.mean - other.spread.mean)
    sides = (best, other)
    deviations = [(side.spread.deviation, side.spread.count) for side in sides if side.spread.deviation is not None]
    if len(deviations) == 2:
        return Gap(other, difference, "seeds", _welch(*((d**2 / count, count) for d, count in deviations)))
    halves = [side.half_interval for side in sides if side.half_interval is not None]
    if len(halves) == 2:
        return Gap(other, difference, "intervals", math.hypot(*halves))
    if all(side.examples for side in sides):
        return Gap(
            other, difference, "examples", _binomial(*((side.spread.mean, side.examples or 1) for side in sides))
        )
    return Gap(other, difference, "unknown", None)


def _welch(one: tuple[float, int], other: tuple[float, int]) -> float:
    """Returns the margin of the difference between two means, given the squared standard error and the number of values for each
    mean."""
    from scipy.stats import t  # takes half a second to import

    (a, m), (b, n) = one, other
    if a + b == 0:
        return 0.0
    freedom = (a + b) ** 2 / (a**2 / (m - 1) + b**2 / (n - 1))
    return float(t.ppf((1 + LEVEL) / 2, freedom)) * math.sqrt(a + b)


def _binomial(*shares: tuple[float, int]) -> float:
    """Returns the margin of the difference between two proportions, given each proportion and its number of examples. Uses the
    method of Agresti and Caffo, which adds a success and a failure to each proportion, so that 0 of 7 does not count as
    certain."""
    variance = 0.0
    for share, count in shares:
        share = (share * count + 1) / (count + 2)
        variance += share * (1 - share) / (count + 2)
    return 1.96 * math.sqrt(variance)


def _verdict(groups: Sequence[Group], split: str) -> Verdict | None:
    metric = _metric_of(groups, split)
    if metric is None:
        return None
    measured = [each for run in _runs(groups) if (each := run.metric(split, metric)) is not None]
    sides = [side for group in groups if (side := _side(group, split, metric)) is not None]
    if len(sides) < min(2, len(groups)) or len(files_of(_runs(groups), split)) > 1:
        return None
    best, *others = sorted(sides, key=lambda side: side.spread.mean, reverse=not lower_is_better(metric))
    known = {side.name for side in sides}
    missing = [group.name for group in groups if group.name not in known]
    return Verdict(split, metric, measured[0].unit, best, [gap(best, other) for other in others], missing)


def _metric_of(groups: Sequence[Group], split: str) -> str | None:
    """Returns the metric that selects the weights, or otherwise the first metric that most groups have measured."""
    counts: dict[str, int] = {}
    for group in groups:
        metrics = [metric for run in group.runs for metric in run.metrics_of(split)]
        for name in dict.fromkeys(metric.name for metric in metrics if _is_number(metric)):
            counts[name] = counts.get(name, 0) + 1
    selecting = {run.history.selection_metric for run in _runs(groups)}
    shared = [name for name, count in counts.items() if count >= min(2, len(groups))]
    return max(shared, key=lambda name: (name in selecting, counts[name]), default=None)


def _side(group: Group, split: str, metric: str) -> Side | None:
    values, halves, sizes = [], [], []
    for run in group.runs:
        measured = run.metric(split, metric)
        if measured is None or not _is_number(measured):
            continue
        values.append(measured.value)
        if measured.interval is not None:
            halves.append((measured.interval[1] - measured.interval[0]) / 2)
        # The first number of the split counts its examples; only a proportion of them has a binomial standard error.
        size = next((each.value for each in run.metrics_of(split) if each.unit == "count"), None)
        if size is not None and size >= 1 and measured.unit == "share" and 0 <= measured.value <= 1:
            sizes.append(int(size))
    spread = Spread.of(values)
    if spread is None:
        return None
    half = sum(halves) / len(halves) if len(halves) == len(values) else None
    return Side(group.name, group.colour, spread, half, min(sizes) if len(sizes) == len(values) else None)


def _runs(groups: Sequence[Group]) -> list[Run]:
    return [run for group in groups for run in group.runs]


def _is_number(metric: Metric) -> bool:
    return metric.unit != "count" and not math.isnan(metric.value)
