"""The numbers that the runs of a cell measured, next to the published numbers."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.run_files import EVALUATION_FILE
from tasks.tables import Cell
from utils.errors import UserError

if TYPE_CHECKING:
    from tasks.evaluation import Evaluation

Interval = tuple[float, float]


@dataclass(frozen=True)
class Number:
    """A number of a cell, in percent: as published, and as measured with each seed.

    Attributes:
        intervals: the 95% interval over examples for each measured value, or None if the run has no interval.
    """

    split: str
    metric: str
    published: float
    measured: tuple[float, ...]
    intervals: tuple[Interval | None, ...] = ()

    @property
    def mean(self) -> float | None:
        """The mean over seeds, or None if nothing was measured."""
        return statistics.fmean(self.measured) if self.measured else None

    @property
    def spread(self) -> float | None:
        """The standard deviation over seeds, or None for fewer than two seeds."""
        return statistics.stdev(self.measured) if len(self.measured) > 1 else None

    @property
    def difference(self) -> float | None:
        """The measured value minus the published value."""
        return None if self.mean is None else self.mean - self.published

    @property
    def interval(self) -> Interval | None:
        """The interval if there is only one seed. None if that seed has no interval, or if there are several seeds, because their
        spread is more informative."""
        return self.intervals[0] if len(self.intervals) == 1 else None

    def as_json(self) -> dict[str, Any]:
        """Returns the number as written to a receipt, with the intervals of all seeds if any seed has one."""
        rounded = {"mean": self.mean, "spread": self.spread, "difference": self.difference}
        intervals = [None if ends is None else [round(end, 4) for end in ends] for ends in self.intervals]
        return {
            "split": self.split,
            "metric": self.metric,
            "published": self.published,
            "measured": [round(value, 4) for value in self.measured],
            **{name: None if value is None else round(value, 4) for name, value in rounded.items()},
            **({"intervals": intervals} if any(intervals) else {}),
        }

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Number:
        """Restores a number from :meth:`as_json`."""
        intervals = tuple(ends and (ends[0], ends[1]) for ends in values.get("intervals", []))
        return cls(values["split"], values["metric"], values["published"], tuple(values["measured"]), intervals)

    def text(self) -> str:
        """Formats the measured value for tables: "80.4", "80.4 [79.7, 81.1]", "80.4 ± 0.2", or the reason why it is missing."""
        if self.mean is None:
            return "not measured"
        if self.interval is not None:
            return f"{self.mean:.1f} [{self.interval[0]:.1f}, {self.interval[1]:.1f}]"
        return f"{self.mean:.1f}" + ("" if self.spread is None else f" ± {self.spread:.1f}")


def evaluation_of(run: Path) -> dict[str, Evaluation]:
    """Returns the evaluation of each split of a finished run.

    Raises:
        UserError: if the run has no evaluation, or it is damaged.
    """
    from tasks.evaluation import read_evaluations  # here, so that mistakes in the command line do not wait for torch

    try:
        splits = read_evaluations(run)
    except (OSError, ValueError) as error:
        raise UserError(f"{error}", where=run / EVALUATION_FILE, remedy="run the cell again") from None
    if not splits:
        raise UserError("does not exist or is empty", where=run / EVALUATION_FILE, remedy="run the cell again")
    return splits


def percents(evaluation: Evaluation) -> dict[str, float]:
    """Returns the metrics in percent, without sizes and empty metrics."""
    measured = (each for each in evaluation.metrics if each.unit != "count" and not math.isnan(each.value))
    return {metric.name: 100 * metric.value for metric in measured}


def sizes_of(run: Path) -> list[str]:
    """Returns the sizes of each measured split as text: "test: 1000 images, 5000 captions". Raises the errors of
    :func:`evaluation_of`."""
    sizes = {
        split: [f"{metric.value} {metric.name}" for metric in evaluation.metrics if metric.unit == "count"]
        for split, evaluation in evaluation_of(run).items()
    }
    return [f"{split}: {', '.join(listed)}" for split, listed in sizes.items() if listed]


def numbers_of(cell: Cell, runs: Sequence[Path]) -> list[Number]:
    """Returns the published numbers of the cell, with the numbers measured by its runs, in table order. Raises the errors of
    :func:`evaluation_of`."""
    found = [evaluation_of(run) for run in runs]
    numbers = []
    for split, metrics in cell.numbers.items():
        evaluations = [splits[split] for splits in found if split in splits]
        for name, published in metrics.items():
            measured = [
                each for evaluation in evaluations if (each := evaluation.get(name)) and not math.isnan(each.value)
            ]
            numbers.append(
                Number(
                    split,
                    name,
                    published,
                    tuple(100 * metric.value for metric in measured),
                    tuple(_in_percent(metric.interval) for metric in measured),
                )
            )
    return numbers


def _in_percent(interval: Interval | None) -> Interval | None:
    return None if interval is None else (100 * interval[0], 100 * interval[1])


def table_of(numbers: Sequence[Number], published: str) -> str:
    """Formats the numbers: measured, published, and the difference.

    Args:
        published: the header of the published column.
    """
    width = max(len(f"{number.split} {number.metric}") for number in numbers)
    room = max(12, *(len(number.text()) for number in numbers))
    lines = [f"{'':{width}}  {'measured':>{room}}  {published:>9}  difference"]
    for number in numbers:
        difference = "" if number.difference is None else f"{number.difference:+10.1f}"
        name = f"{number.split} {number.metric}"
        lines.append(f"{name:{width}}  {number.text():>{room}}  {number.published:9.1f}  {difference}".rstrip())
    return "\n".join(lines)
