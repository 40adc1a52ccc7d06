"""What the runs of a cell measured, beside what was published."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.tables import Cell
from utils.errors import UserError

EVALUATION = "evaluation.json"


@dataclass(frozen=True)
class Number:
    """One number of a cell, in percent: as published, and as measured with each seed."""

    split: str
    metric: str
    published: float
    measured: tuple[float, ...]

    @property
    def mean(self) -> float | None:
        """The mean over seeds; None where nothing was measured."""
        return statistics.fmean(self.measured) if self.measured else None

    @property
    def spread(self) -> float | None:
        """The standard deviation over seeds; None for fewer than two."""
        return statistics.stdev(self.measured) if len(self.measured) > 1 else None

    @property
    def difference(self) -> float | None:
        """Measured less published."""
        return None if self.mean is None else self.mean - self.published

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Number:
        """The number in a receipt."""
        return cls(values["split"], values["metric"], values["published"], tuple(values["measured"]))

    def text(self) -> str:
        """The measured value as tables have it: "80.4", "80.4 ± 0.2", or why there is none."""
        if self.mean is None:
            return "not measured"
        return f"{self.mean:.1f}" + ("" if self.spread is None else f" ± {self.spread:.1f}")


def read_evaluation(run: Path) -> dict[str, dict[str, float]]:
    """The metrics of a finished run, in percent, {split: {metric: percent}}; sizes and empty ones left out.

    Raises:
        UserError: the run has none, or it is damaged.
    """
    return {
        split: {
            name: 100 * metric["value"]
            for name, metric in metrics.items()
            if metric["unit"] != "count" and metric["value"] is not None
        }
        for split, metrics in _read(run).items()
    }


def sizes_of(run: Path) -> list[str]:
    """The sizes of each measured split, as texts: "test: 1000 images, 5000 captions". Raises as :func:`read_evaluation`."""
    sizes = {
        split: [f"{metric['value']} {name}" for name, metric in metrics.items() if metric["unit"] == "count"]
        for split, metrics in _read(run).items()
    }
    return [f"{split}: {', '.join(listed)}" for split, listed in sizes.items() if listed]


def _read(run: Path) -> dict[str, dict[str, dict[str, Any]]]:
    path = run / EVALUATION
    try:
        splits: dict[str, dict[str, dict[str, Any]]] = json.loads(path.read_text(encoding="utf-8"))
        for metrics in splits.values():
            for metric in metrics.values():
                metric["value"], metric["unit"]
        return splits
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} cannot be read ({type(error).__name__}: {error}); run the cell again") from None


def numbers_of(cell: Cell, evaluations: Sequence[Mapping[str, Mapping[str, float]]]) -> list[Number]:
    """The cell's numbers beside those of its runs, in the order of the table."""
    return [
        Number(split, metric, published, _measured(evaluations, split, metric))
        for split, metrics in cell.numbers.items()
        for metric, published in metrics.items()
    ]


def _measured(evaluations: Sequence[Mapping[str, Mapping[str, float]]], split: str, metric: str) -> tuple[float, ...]:
    return tuple(found[split][metric] for found in evaluations if metric in found.get(split, {}))


def table_of(numbers: Sequence[Number], published: str) -> str:
    """The numbers as text: measured, published, and the difference. ``published``: the header of the published column."""
    width = max(len(f"{number.split} {number.metric}") for number in numbers)
    lines = [f"{'':{width}}  {'measured':>12}  {published:>9}  difference"]
    for number in numbers:
        difference = "" if number.difference is None else f"{number.difference:+10.1f}"
        lines.append(
            f"{f'{number.split} {number.metric}':{width}}  {number.text():>12}  {number.published:9.1f}  {difference}".rstrip()
        )
    return "\n".join(lines)
