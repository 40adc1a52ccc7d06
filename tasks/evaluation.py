"""What an evaluation gives: metrics beside chance, and predictions; as a table and as JSON."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from engine.run_files import EVALUATION_FILE
from metrics.bootstrap import Scores, interval
from tasks.facts import Facts
from utils.files import write_text

logger = logging.getLogger(__name__)

Unit = Literal["share", "score", "count"]
"""share: in 0..1, shown as a percentage. score: shown times 100 without a sign, as papers do with BLEU or CIDEr. count: the size
of a set, an integer."""

BOOTSTRAP = (
    "draws for the 95 % interval of each metric that is a mean over examples; 0: no intervals; 1000 suits tables. Examples "
    "of one image, or statements of one sentence, are drawn together"
)
"""Description of ``evaluation.bootstrap``."""


@dataclass(frozen=True)
class Metric:
    """One number of an evaluation.

    ``chance``: the value of a guess; None where a guess has none. ``rule``: how it is measured, where there is more than one
    way. ``published``: the paper's number, as a value. ``scores``: of the examples, where the value is the mean of them, or the
    mean of such means. ``interval``: the 95 % interval over examples, where somebody asked for it.
    """

    name: str
    value: float
    chance: float | None = None
    unit: Unit = "share"
    rule: str | None = None
    published: float | None = None
    scores: tuple[Scores, ...] = field(default=(), compare=False, repr=False)
    interval: tuple[float, float] | None = None

    @classmethod
    def mean_of(cls, name: str, scores: Scores, chance: float | None = None, *, rule: str | None = None) -> Metric:
        """The share that is the mean of ``scores``."""
        return cls(name, scores.mean(), chance, rule=rule, scores=(scores,))

    def as_json(self) -> dict[str, Any]:
        """The metric without its name. A value that is NaN, of an empty set for instance, is null; no chance is left out."""
        values = {"value": None if math.isnan(self.value) else self.value, "unit": self.unit}
        ends = None if self.interval is None else [round(end, 6) for end in self.interval]
        known = {"interval": ends, "chance": self.chance, "published": self.published, "rule": self.rule}
        return values | {name: value for name, value in known.items() if value is not None}

    def shown(self, value: float | None) -> str:
        """A value of this metric in a column of tables; empty for None."""
        if value is None:
            return ""
        return "   none" if math.isnan(value) else f"{100 * value:6.1f}{'%' if self.unit == 'share' else ' '}"

    def shown_interval(self) -> str:
        """The interval in a column of tables; empty where there is none."""
        return "" if self.interval is None else f"[{', '.join(f'{100 * end:.1f}' for end in self.interval)}]"


@dataclass(frozen=True)
class Evaluation:
    """Metrics of one split in the order in which they are shown.

    ``predictions``: one JSON object per example, to be written to a file; where the data set has an evaluation server, as that
    takes them. ``facts``: None where nobody asks for them, as in a validation.
    """

    metrics: tuple[Metric, ...]
    predictions: Sequence[Mapping[str, Any]] | None = None
    facts: Facts | None = None

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
        """The metrics by name, for ``evaluation.json``; with each but the sizes, the facts."""
        facts = {} if self.facts is None else self.facts.as_json()
        return {metric.name: metric.as_json() | ({} if metric.unit == "count" else facts) for metric in self.metrics}

    def with_intervals(self, draws: int, seed: int) -> Evaluation:
        """The same with the 95 % interval of each metric that has scores of examples; unchanged for 0 draws."""
        if not draws:
            return self
        metrics = (replace(metric, interval=interval(metric.scores, draws, seed)) for metric in self.metrics)
        return replace(self, metrics=tuple(metrics))

    def with_published(self, percent: Mapping[str, float], split: str) -> Evaluation:
        """The same beside the published numbers, in percent by metric; logs those that ``split`` has no metric for."""
        for name in percent.keys() - self.values().keys():
            logger.warning("evaluation.published.%s: there is no metric %r", split, name)
        metrics = (
            replace(metric, published=round(percent[metric.name] / 100, 6)) if metric.name in percent else metric
            for metric in self.metrics
        )
        return replace(self, metrics=tuple(metrics))

    def table(self, title: str = "held-out") -> str:
        """The metrics as text: measured, chance, and where there are any the intervals and the published numbers. The line below
        them says in brackets the sizes of the sets, the rules, the split's files, the weights, and how those were trained.

        Without any metric but sizes, the first line says so.
        """
        shown = [metric for metric in self.metrics if metric.unit != "count"]
        sizes = ", ".join(f"{metric.value} {metric.name}" for metric in self.metrics if metric.unit == "count")
        rules = dict.fromkeys(metric.rule for metric in shown if metric.rule is not None)
        facts = [] if self.facts is None else self.facts.texts()
        below = "; ".join(filter(None, [sizes, *rules, *facts]))
        if not shown:
            return f"{title}: nothing to measure" + (f"\n({below})" if self.facts is not None else "")
        width = max(len(name) for name in (*(metric.name for metric in shown), title))
        published = any(metric.published is not None for metric in shown)
        room = 17 if any(metric.interval is not None for metric in shown) else 0
        header = "  95 % interval".ljust(room) if room else ""
        lines = [f"{title:{width}}  measured{header}  chance" + ("  published" if published else "")]
        for metric in shown:
            chance, ends = metric.shown(metric.chance)[1:], metric.shown_interval()
            between = f"   {ends}".ljust(room) if room else ""
            line = f"{metric.name:{width}}  {metric.shown(metric.value)}{between}  {chance:6}"
            lines.append((f"{line}    {metric.shown(metric.published)}" if published else line).rstrip())
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
    write_text(folder / EVALUATION_FILE, json.dumps(results, indent=2) + "\n")


def write_predictions(path: Path, predictions: Sequence[Mapping[str, Any]]) -> str:
    """Write the predictions as a JSON list, one in a line; returns a line that names the file."""
    lines = ",\n".join(json.dumps(prediction, ensure_ascii=False) for prediction in predictions)
    write_text(path, f"[\n{lines}\n]\n")
    return f"{len(predictions)} predictions in {path}"


def _mean(metrics: Sequence[Metric]) -> Metric:
    chances = [metric.chance for metric in metrics if metric.chance is not None]
    chance = sum(chances) / len(chances) if len(chances) == len(metrics) else None
    value = sum(metric.value for metric in metrics) / len(metrics)
    return Metric(metrics[0].name, value, chance, metrics[0].unit, metrics[0].rule)
