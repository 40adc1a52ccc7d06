"""Results of an evaluation: metrics with their chance levels, and predictions, as a table and as JSON."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from engine.run_files import EVALUATION_FILE
from metrics.bootstrap import Scores, interval
from models.config import RankingScore
from tasks.facts import Facts
from utils.files import parse_json, read_text, write_text

MAX_BYTES = 400_000_000
"""Maximum size in bytes of an evaluation file that is read."""

logger = logging.getLogger(__name__)

Unit = Literal["share", "score", "count"]
"""Unit of a metric. share: a fraction in 0..1, which is shown as a percentage. score: a value that is multiplied by 100 and shown
without a percent sign, as papers do for BLEU or CIDEr. count: the size of a set, an integer."""


@dataclass(frozen=True)
class Metric:
    """A metric of an evaluation.

    Attributes:
        name: name of the metric.
        value: the measured value.
        chance: value of a random guess; None if it is undefined.
        unit: unit of the value.
        rule: how the value is measured, if the metric can be measured in several ways.
        published: the published value, in the unit of ``value``.
        before: the value with the weights from which the run started, if it was measured.
        scores: scores of the examples, if the value is their mean, or the mean of several such means.
        interval: the 95% interval over examples, if requested.
    """

    name: str
    value: float
    chance: float | None = None
    unit: Unit = "share"
    rule: str | None = None
    published: float | None = None
    before: float | None = None
    scores: tuple[Scores, ...] = field(default=(), compare=False, repr=False)
    interval: tuple[float, float] | None = None

    @classmethod
    def mean_of(cls, name: str, scores: Scores, chance: float | None = None, *, rule: str | None = None) -> Metric:
        """Creates a metric with the unit "share" that is the mean of ``scores``."""
        return cls(name, scores.mean(), chance, rule=rule, scores=(scores,))

    def as_json(self) -> dict[str, Any]:
        """Returns the metric without its name. NaN, for example from an empty set, becomes null; a missing chance level is
        omitted."""
        values = {"value": None if math.isnan(self.value) else self.value, "unit": self.unit}
        ends = None if self.interval is None else [round(end, 6) for end in self.interval]
        numbers = {"chance": self.chance, "published": self.published, "before": self.before}
        known = {"interval": ends, **numbers, "rule": self.rule}
        return values | {name: value for name, value in known.items() if value is not None}

    @classmethod
    def of(cls, name: str, values: Mapping[str, Any]) -> Metric:
        """Restores a metric from :meth:`as_json`.

        Raises:
            ValueError: if a value has the wrong type.
        """
        numbers = {
            key: _number(name, key, values[key]) for key in ("value", "chance", "published", "before") if key in values
        }
        ends = tuple(_number(name, "interval", end) for end in values.get("interval") or ())
        if len(ends) not in (0, 2):
            raise ValueError(f"the interval of {name!r} does not have two ends")
        unit = values.get("unit", "share")
        return cls(
            name,
            numbers.get("value", math.nan),
            numbers.get("chance"),
            unit if unit in get_args(Unit) else "share",
            str(values["rule"]) if "rule" in values else None,
            numbers.get("published"),
            numbers.get("before"),
            interval=(ends[0], ends[1]) if ends else None,
        )

    def shown(self, value: float | None) -> str:
        """Formats a value of this metric for a table column; empty for None."""
        if value is None:
            return ""
        return "   none" if math.isnan(value) else f"{100 * value:6.1f}{'%' if self.unit == 'share' else ' '}"

    def shown_interval(self) -> str:
        """Formats the interval for a table column; empty if it was not computed."""
        return "" if self.interval is None else f"[{', '.join(f'{100 * end:.1f}' for end in self.interval)}]"


@dataclass(frozen=True)
class Evaluation:
    """The result of evaluating a split.

    Attributes:
        metrics: the metrics, in display order.
        predictions: one JSON object per example, to be written to a file, in the format of the data set's evaluation server if
            there is one.
        facts: facts about the split and the weights; None if they are not needed, as in validation.
        chosen_score: the score that ``evaluation.score: auto`` chose for sorting candidates; None if the config names a score.
        notes: sentences for the user about the metrics.
    """

    metrics: tuple[Metric, ...]
    predictions: Sequence[Mapping[str, Any]] | None = None
    facts: Facts | None = None
    chosen_score: RankingScore | None = None
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, values: Mapping[str, Mapping[str, Any]]) -> Evaluation:
        """Restores an evaluation, without predictions, from :meth:`as_json`.

        Raises:
            ValueError: if a value has the wrong type.
        """
        if not isinstance(values, Mapping) or not all(isinstance(each, Mapping) for each in values.values()):
            raise ValueError("it does not contain metrics by name")
        facts = next((found for each in values.values() if (found := Facts.of(each)) is not None), None)
        scores = [
            each["chosen_score"] for each in values.values() if each.get("chosen_score") in get_args(RankingScore)
        ]
        metrics = tuple(Metric.of(name, each) for name, each in values.items())
        return cls(metrics, facts=facts, chosen_score=scores[0] if scores else None)

    def get(self, name: str) -> Metric | None:
        """Returns the metric with the given name, or None if it does not exist."""
        return next((metric for metric in self.metrics if metric.name == name), None)

    def __getitem__(self, name: str) -> Metric:
        """Returns the metric with the given name; raises :class:`KeyError` if it does not exist."""
        if (metric := self.get(name)) is None:
            raise KeyError(name)
        return metric

    def values(self) -> dict[str, float]:
        """Returns the values by name."""
        return {metric.name: metric.value for metric in self.metrics}

    def as_json(self) -> dict[str, Any]:
        """Returns the metrics by name, for ``evaluation.json``. All metrics except sizes include the facts."""
        facts = {} if self.facts is None else self.facts.as_json()
        facts |= {} if self.chosen_score is None else {"chosen_score": self.chosen_score}
        return {metric.name: metric.as_json() | ({} if metric.unit == "count" else facts) for metric in self.metrics}

    def with_intervals(self, draws: int, seed: int) -> Evaluation:
        """Returns a copy with the 95% interval of each metric that has scores of examples. With 0 draws, the evaluation is
        unchanged."""
        if not draws:
            return self
        metrics = (replace(metric, interval=interval(metric.scores, draws, seed)) for metric in self.metrics)
        return replace(self, metrics=tuple(metrics))

    def with_published(self, percent: Mapping[str, float], split: str) -> Evaluation:
        """Returns a copy with the published numbers, which are given in percent by metric. Warns about unknown metrics."""
        for name in percent.keys() - self.values().keys():
            logger.warning("evaluation.published.%s: unknown metric %r is ignored", split, name)
        metrics = (
            replace(metric, published=round(percent[metric.name] / 100, 6)) if metric.name in percent else metric
            for metric in self.metrics
        )
        return replace(self, metrics=tuple(metrics))

    def with_before(self, earlier: Evaluation) -> Evaluation:
        """Returns a copy with the values of ``earlier``, an evaluation of the same split with the starting weights."""
        values = earlier.values()
        metrics = (
            metric if metric.unit == "count" else replace(metric, before=values.get(metric.name))
            for metric in self.metrics
        )
        return replace(self, metrics=tuple(metrics))

    def table(self, title: str = "held-out") -> str:
        """Formats the metrics as text: the measured values, the chance levels, and if available the values with the starting
        weights, the intervals and the published numbers. The last line, in parentheses, lists the sizes of the sets, how the
        metrics are measured, the files of the split, the weights, and how the weights were trained.

        If sizes are the only metrics, the first line says that there is nothing to measure.
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
        header = "  95% interval".ljust(room) if room else ""
        before = any(metric.before is not None for metric in shown)
        earlier = "  before" if before else ""
        lines = [f"{title:{width}}{earlier}  measured{header}  chance" + ("  published" if published else "")]
        for metric in shown:
            chance, ends = metric.shown(metric.chance)[1:], metric.shown_interval()
            between = f"   {ends}".ljust(room) if room else ""
            first = f" {metric.shown(metric.before):7}" if before else ""
            line = f"{metric.name:{width}}{first}  {metric.shown(metric.value)}{between}  {chance:6}"
            lines.append((f"{line}    {metric.shown(metric.published)}" if published else line).rstrip())
        return "\n".join([*lines, *([f"({below})"] if below else []), *self.notes])


def count(name: str, value: int) -> Metric:
    """Creates a metric that is the size of a set."""
    return Metric(name, value, unit="count")


def mean_of_splits(evaluations: Iterable[Evaluation]) -> Evaluation | None:
    """Returns the mean over splits, such as languages, of each metric that all measured splits have, except sizes. Returns None
    if fewer than two splits are measured."""
    measured = [
        {metric.name: metric for metric in evaluation.metrics if metric.unit != "count"} for evaluation in evaluations
    ]
    measured = [metrics for metrics in measured if metrics]
    if len(measured) < 2:
        return None
    common = [name for name in measured[0] if all(name in metrics for metrics in measured)]
    return Evaluation(tuple(_mean([metrics[name] for metrics in measured]) for name in common))


def write_evaluations(folder: Path, evaluations: Mapping[str, Evaluation]) -> None:
    """Writes ``evaluation.json`` to ``folder``, with the metrics of each split by name."""
    results = {name: evaluation.as_json() for name, evaluation in evaluations.items()}
    write_text(folder / EVALUATION_FILE, json.dumps(results, indent=2) + "\n")


def read_evaluations(folder: Path) -> dict[str, Evaluation]:
    """Reads ``evaluation.json`` of a run.

    Returns:
        The evaluation of each split, without predictions; empty if the file does not exist.

    Raises:
        ValueError: if the file does not contain metrics by split. The message says what is wrong.
    """
    path = folder / EVALUATION_FILE
    if not path.is_file():
        return {}
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"it is larger than {MAX_BYTES / 1e6:.0f} MB")
    try:
        values = parse_json(read_text(path))
    except ValueError as error:
        raise ValueError(f"not valid JSON ({error})") from None
    if not isinstance(values, dict):
        raise ValueError("it does not contain metrics by split")
    return {str(split): Evaluation.of(metrics) for split, metrics in values.items()}


def write_predictions(path: Path, predictions: Sequence[Mapping[str, Any]]) -> str:
    """Writes the predictions as a JSON list with one prediction per line; returns a message that names the file."""
    lines = ",\n".join(json.dumps(prediction, ensure_ascii=False) for prediction in predictions)
    write_text(path, f"[\n{lines}\n]\n")
    return f"{len(predictions)} predictions in {path}"


def _number(name: str, key: str, value: Any) -> float:
    """Returns a number of a metric, or NaN for null."""
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{key} of {name!r} is {value!r:.40}, not a number")
    return value


def _mean(metrics: Sequence[Metric]) -> Metric:
    chances = [metric.chance for metric in metrics if metric.chance is not None]
    chance = sum(chances) / len(chances) if len(chances) == len(metrics) else None
    value = sum(metric.value for metric in metrics) / len(metrics)
    return Metric(metrics[0].name, value, chance, metrics[0].unit, metrics[0].rule)
