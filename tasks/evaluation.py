"""What an evaluation gives: metrics beside chance, and predictions; as a table and as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from utils.files import write_text

Unit = Literal["share", "score", "count"]
"""share: in 0..1, shown as a percentage. score: shown times 100 without a sign, as papers do with BLEU or CIDEr. count: the size
of a set, an integer."""


@dataclass(frozen=True)
class Metric:
    """One number of an evaluation. ``chance``: the value of a guess; None where a guess has none. ``rule``: how it is measured,
    where there is more than one way."""

    name: str
    value: float
    chance: float | None = None
    unit: Unit = "share"
    rule: str | None = None

    def as_json(self) -> dict[str, Any]:
        """The metric without its name. A value that is NaN, of an empty set for instance, is null; no chance is left out."""
        values = {"value": None if math.isnan(self.value) else self.value, "unit": self.unit}
        known = {"chance": self.chance, "rule": self.rule}
        return values | {name: value for name, value in known.items() if value is not None}


@dataclass(frozen=True)
class Evaluation:
    """Metrics of one split in the order in which they are shown.

    ``predictions``: one JSON object per example, to be written to a file; where the data set has an evaluation server, as that
    takes them.
    """

    metrics: tuple[Metric, ...]
    predictions: Sequence[Mapping[str, Any]] | None = None

    def __getitem__(self, name: str) -> Metric:
        """The metric of a name; raises a :class:`KeyError` where there is none."""
        for metric in self.metrics:
            if metric.name == name:
                return metric
        raise KeyError(name)

    def values(self) -> dict[str, float]:
        """The values by name."""
        return {metric.name: metric.value for metric in self.metrics}

    def as_json(self) -> dict[str, Any]:
        """The metrics by name, for ``evaluation.json``."""
        return {metric.name: metric.as_json() for metric in self.metrics}

    def table(self, title: str = "held-out") -> str:
        """The metrics as text, measured beside chance, with the sizes of the sets and the rules in the last line.

        Without any metric but sizes, one line that says so.
        """
        shown = [metric for metric in self.metrics if metric.unit != "count"]
        if not shown:
            return f"{title}: nothing to measure"
        width = max(len(name) for name in (*(metric.name for metric in shown), title))
        lines = [f"{title:{width}}  measured  chance"]
        for metric in shown:
            sign = "%" if metric.unit == "share" else " "
            chance = "" if metric.chance is None else f"{100 * metric.chance:5.1f}{sign}"
            value = "   none" if math.isnan(metric.value) else f"{100 * metric.value:6.1f}{sign}"
            lines.append(f"{metric.name:{width}}  {value}  {chance}".rstrip())
        sizes = [f"{metric.value} {metric.name}" for metric in self.metrics if metric.unit == "count"]
        rules = dict.fromkeys(metric.rule for metric in self.metrics if metric.rule is not None)
        below = "; ".join([", ".join(sizes), *rules] if sizes else rules)
        return "\n".join([*lines, f"({below})"] if below else lines)


def count(name: str, value: int) -> Metric:
    """The size of a set."""
    return Metric(name, value, unit="count")


def mean_of_splits(evaluations: Iterable[Evaluation]) -> Evaluation | None:
    """The mean of every metric, sizes apart, that all measured splits have, such as languages; None for fewer than two splits."""
    measured = [
        {metric.name: metric for metric in evaluation.metrics if metric.unit != "count"} for evaluation in evaluations
    ]
    measured = [metrics for metrics in measured if metrics]
    if len(measured) < 2:
        return None
    common = [name for name in measured[0] if all(name in metrics for metrics in measured)]
    return Evaluation(tuple(_mean([metrics[name] for metrics in measured]) for name in common))


def write_evaluations(folder: Path, evaluations: Mapping[str, Evaluation]) -> None:
    """Write ``evaluation.json`` into ``folder``: for each split its metrics by name."""
    results = {name: evaluation.as_json() for name, evaluation in evaluations.items()}
    write_text(folder / "evaluation.json", json.dumps(results, indent=2) + "\n")


def _mean(metrics: Sequence[Metric]) -> Metric:
    chances = [metric.chance for metric in metrics if metric.chance is not None]
    chance = sum(chances) / len(chances) if len(chances) == len(metrics) else None
    value = sum(metric.value for metric in metrics) / len(metrics)
    return Metric(metrics[0].name, value, chance, metrics[0].unit, metrics[0].rule)
