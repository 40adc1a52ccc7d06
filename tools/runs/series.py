"""The values of a run over its steps. Files are read line by line, so that memory is bounded for files of any length. All extreme
values are kept."""

from __future__ import annotations

import json
import math
import statistics
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

from utils.lines import bounded_lines

CAPACITY = 1024
"""Maximum number of buckets in a series. When all buckets are used, neighbouring buckets are merged, and the number of lines per
bucket doubles."""
MAX_LINE_BYTES = 100_000
"""Maximum size in bytes of a line of metrics. A longer line counts as damaged."""
NEWEST = 100
"""Number of newest points that a series keeps besides its buckets."""
MAX_NAMES = 500
"""Maximum number of named values in a file; more are ignored."""

Point = tuple[float, float]
"""A step and a value."""


@dataclass
class Bucket:
    """Summarises the values of neighbouring steps: their mean, and their minimum and maximum, each with its step."""

    low: Point
    high: Point
    steps: float
    total: float
    count: int

    def add(self, point: Point) -> None:
        step, value = point
        if value < self.low[1]:
            self.low = point
        elif value > self.high[1]:
            self.high = point
        self.steps, self.total, self.count = self.steps + step, self.total + value, self.count + 1

    def merge(self, other: Bucket) -> None:
        self.low, self.high = min(self.low, other.low, key=_value), max(self.high, other.high, key=_value)
        self.steps, self.total, self.count = (
            self.steps + other.steps,
            self.total + other.total,
            self.count + other.count,
        )

    @property
    def mean(self) -> Point:
        """The mean step and the mean value."""
        return self.steps / self.count, self.total / self.count


class Series:
    """The values of one quantity over the steps.

    Attributes:
        first, last: the first and last finite points.
        newest: the last :data:`NEWEST` finite points.
        not_finite: number of values that were NaN or infinite.
    """

    def __init__(self) -> None:
        self.buckets: list[Bucket] = []
        self.not_finite = 0
        self.first: Point | None = None
        self.newest: deque[Point] = deque(maxlen=NEWEST)
        self._width = 1

    def add(self, step: float, value: float) -> None:
        if not math.isfinite(value):
            self.not_finite += 1
            return
        point = (step, value)
        self.newest.append(point)
        if self.buckets and self.buckets[-1].count < self._width:
            self.buckets[-1].add(point)
            return
        if len(self.buckets) >= CAPACITY:
            self._halve()
        self.first = self.first or point
        self.buckets.append(Bucket(point, point, step, value, 1))

    @property
    def last(self) -> Point | None:
        return self.newest[-1] if self.newest else None

    def _halve(self) -> None:
        for left, right in zip(self.buckets[::2], self.buckets[1::2], strict=True):
            left.merge(right)
        self.buckets, self._width = self.buckets[::2], 2 * self._width

    def points(self) -> list[Point]:
        """Returns the minimum and maximum point of each bucket, ordered by step, and the first and the last point of the
        series."""
        points = [point for bucket in self.buckets for point in sorted({bucket.low, bucket.high})]
        if self.first is not None and self.first != points[0]:
            points.insert(0, self.first)
        if self.last is not None and self.last != points[-1]:
            points.append(self.last)
        return points

    def smoothed(self, share: float = 0.05) -> list[Point]:
        """Returns moving averages over ``share`` of the run, one per bucket; empty if the window has fewer than three buckets."""
        reach = round(len(self.buckets) * share / 2)
        if reach < 1:
            return []
        points = []
        for index, bucket in enumerate(self.buckets):
            # A symmetric window, because other windows would distort slopes at both ends.
            near = min(reach, index, len(self.buckets) - 1 - index)
            window = self.buckets[index - near : index + near + 1]
            count = sum(other.count for other in window)
            points.append((bucket.mean[0], sum(other.total for other in window) / count))
        return points

    def range(self) -> tuple[float, float]:
        """Returns the minimum and the maximum value."""
        return min(bucket.low[1] for bucket in self.buckets), max(bucket.high[1] for bucket in self.buckets)

    def median(self) -> float:
        return statistics.median(bucket.mean[1] for bucket in self.buckets)

    def mean_of_end(self, share: float = 0.05) -> float:
        """Returns the mean of the last ``share`` of the buckets."""
        end = self.buckets[-max(1, round(share * len(self.buckets))) :]
        return sum(bucket.total for bucket in end) / sum(bucket.count for bucket in end)


@dataclass
class Metrics:
    """The series in a file, by name.

    Attributes:
        damaged: line numbers of the first lines without metrics.
        damaged_count: total number of lines without metrics.
    """

    series: dict[str, Series] = field(default_factory=dict)
    lines: int = 0
    damaged: list[int] = field(default_factory=list)
    damaged_count: int = 0
    last_step: int | None = None

    def _damage(self, number: int) -> None:
        self.damaged_count += 1
        if len(self.damaged) < 5:
            self.damaged.append(number)

    def _add(self, values: dict[str, float | None]) -> None:
        step = values["step"]
        assert isinstance(step, int)
        self.lines += 1
        self.last_step = step
        for name, value in values.items():
            if name != "step" and (name in self.series or len(self.series) < MAX_NAMES):
                self.series.setdefault(name, Series()).add(step, math.nan if value is None else value)


def read_metrics(path: Path) -> Metrics:
    """Returns the metrics in ``metrics.jsonl`` or ``validation.jsonl``; empty metrics if the file does not exist.

    Series without any finite value are dropped. ``step_s``, the time of a step, is derived from ``elapsed_s``.
    """
    metrics = Metrics()
    if not path.is_file():
        return metrics
    before: Point | None = None
    with path.open("rb") as file:
        for number, line in bounded_lines(file, MAX_LINE_BYTES):
            values = _metrics_of(line)
            if values is None:
                metrics._damage(number)
                continue
            step, elapsed = values["step"], values.get("elapsed_s")
            if isinstance(elapsed, int | float) and isinstance(step, int):
                if before is not None and step > before[0] and elapsed >= before[1]:
                    values["step_s"] = (elapsed - before[1]) / (step - before[0])
                before = (step, elapsed)
            metrics._add(values)
    metrics.series = {name: series for name, series in metrics.series.items() if series.buckets}
    return metrics


def _metrics_of(line: str) -> dict[str, float | None] | None:
    """Returns the numbers in a line, with None for null. Returns None if the line is truncated or contains other values."""
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(values, dict) or type(values.get("step")) is not int or abs(values["step"]) > 1 << 53:
        return None
    if any(isinstance(value, bool) or not isinstance(value, int | float | None) for value in values.values()):
        return None
    try:
        return {name: value if name == "step" or value is None else float(value) for name, value in values.items()}
    except OverflowError:
        return None


def _value(point: Point) -> float:
    return point[1]
