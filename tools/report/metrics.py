"""Tables of the final metrics: of one run, next to chance and published numbers, or of several groups of runs side by side."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from tasks.evaluation import Evaluation, Metric
from tasks.image_blind import ADVICE, unbeaten_baselines
from tools.report.groups import Group, Spread
from tools.runs.reading import Run
from utils.printing import format_number

LOWER = re.compile(r"loss|error|perplexity|(median|mean) rank|distance", re.I)
"""Names of metrics for which lower is better. For all other metrics, higher is better."""


@dataclass(frozen=True)
class MetricRow:
    """A metric of one run.

    Attributes:
        share: length of the bar that shows the value, from 0 to 1, on which ``chance`` is marked; None if there is no bar.
    """

    name: str
    cells: list[str]
    share: float | None
    chance: float | None


@dataclass(frozen=True)
class SplitMetrics:
    """The metrics of a run's split.

    Attributes:
        warning: a problem that the values suggest.
        note: sizes, rules, files and weights.
    """

    split: str
    columns: list[str]
    rows: list[MetricRow]
    warning: str
    note: str


@dataclass(frozen=True)
class Cell:
    text: str
    best: bool = False


@dataclass(frozen=True)
class ComparedRow:
    """A metric with a cell for each group."""

    name: str
    cells: list[Cell]
    chance: str = ""


@dataclass(frozen=True)
class ComparedMetrics:
    """Metrics of several groups: titled sections of rows."""

    sections: list[tuple[str, list[ComparedRow]]]
    note: str


def metrics_of(run: Run) -> list[SplitMetrics]:
    """Returns the metrics of each split of a run."""
    return [_split(split, evaluation) for split, evaluation in run.evaluation.items()]


def compared_metrics(groups: Sequence[Group]) -> ComparedMetrics:
    """Returns the metrics of several groups, with the best value in each row marked, followed by loss, speed and steps."""
    runs = [run for group in groups for run in group.runs]
    sections = []
    splits = list(dict.fromkeys(split for run in runs for split in run.evaluation))
    for split in splits:
        names = dict.fromkeys(metric.name for run in runs for metric in run.metrics_of(split))
        rows = [_row(groups, split, name) for name in names]
        sections.append((split, rows))
    training = []
    for title, name, lower in (
        ("loss, mean of the last 5%", "loss", True),
        ("samples per second", "samples_per_s", False),
    ):
        series = [[run.metrics.series[name] for run in group.runs if name in run.metrics.series] for group in groups]
        spreads = [Spread.of([each.mean_of_end() if lower else each.median() for each in some]) for some in series]
        if any(spreads):
            training.append(ComparedRow(title, _cells(spreads, [_number(spread) for spread in spreads], lower=lower)))
    steps = [sorted({run.metrics.last_step or 0 for run in group.runs}) for group in groups]
    training.append(ComparedRow("steps", [Cell(", ".join(f"{step:,}" for step in some)) for some in steps]))
    note = (
        "Bold: best in its row; lower is better for losses, errors, ranks and perplexity, higher for everything else."
    )
    if any(len(group.runs) > 1 for group in groups):
        note += " With several seeds: mean ± standard deviation over the seeds."
    if any(len(files_of(runs, split)) > 1 for split in splits):
        note += " Rows whose runs were measured on different files have no best value."
    return ComparedMetrics([*sections, ("training", training)], note)


def lower_is_better(name: str) -> bool:
    return bool(LOWER.search(name))


def files_of(runs: Iterable[Run], split: str) -> set[str]:
    """Returns the files on which runs measured a split."""
    return {files for run in runs if (files := run.files_of(split)) is not None}


def percent(value: float, unit: str) -> str:
    """Formats a value as in tables: a fraction in percent, a score multiplied by 100."""
    return f"{100 * value:.1f}" + ("%" if unit == "share" else "")


def spread_text(spread: Spread, unit: str) -> str:
    """Returns a mean and its standard deviation over seeds: 71.2 ± 0.8%."""
    if spread.deviation is None:
        return percent(spread.mean, unit)
    return f"{100 * spread.mean:.1f} ± {percent(spread.deviation, unit)}"


def _split(split: str, evaluation: Evaluation) -> SplitMetrics:
    shown = [metric for metric in evaluation.metrics if metric.unit != "count"]
    columns: list[tuple[str, Callable[[Metric], str]]] = [("measured", lambda metric: _value(metric, metric.value))]
    if any(metric.before is not None for metric in shown):
        columns.insert(0, ("before", lambda metric: _value(metric, metric.before)))
    if any(metric.interval is not None for metric in shown):
        columns.append(("95% interval", Metric.shown_interval))
    if any(metric.chance is not None for metric in shown):
        columns.append(("chance", lambda metric: _value(metric, metric.chance)))
    if any(metric.published is not None for metric in shown):
        columns.append(("published", lambda metric: _value(metric, metric.published)))
    rows = []
    for metric in shown:
        share = metric.value if metric.unit == "share" and 0 <= metric.value <= 1 else None
        line = None if metric.chance is None else min(1.0, max(0.0, metric.chance))
        rows.append(MetricRow(metric.name, [text(metric) for _, text in columns], share, line))
    sizes = [f"{metric.value:,} {metric.name}" for metric in evaluation.metrics if metric.unit == "count"]
    rules = dict.fromkeys(metric.rule for metric in shown if metric.rule)
    facts = evaluation.facts
    described = [] if facts is None else [facts.split, facts.weights.name, facts.weights.training]
    unbeaten = unbeaten_baselines(
        {metric.name: None if math.isnan(metric.value) else metric.value for metric in evaluation.metrics}
    )
    warning = f"{', and '.join(unbeaten)}; {ADVICE}" if unbeaten else ""
    note = "; ".join(filter(None, [", ".join(sizes), *rules, *described]))
    return SplitMetrics(split, [title for title, _ in columns], rows, warning, note)


def _row(groups: Sequence[Group], split: str, name: str) -> ComparedRow:
    """Returns a row of the comparison. If runs were measured on different files, the chance level of each value is listed, and
    no value is marked as the best."""
    by_group = [[metric for run in group.runs if (metric := run.metric(split, name)) is not None] for group in groups]
    metrics = [metric for some in by_group for metric in some]
    unit = metrics[0].unit
    if unit == "count":
        return ComparedRow(
            name, [Cell(", ".join(dict.fromkeys(f"{each.value:,}" for each in some))) for some in by_group]
        )
    spreads = [Spread.of([metric.value for metric in some if not math.isnan(metric.value)]) for some in by_group]
    texts = [
        spread_text(spread, unit) if spread is not None else "none" if some else ""
        for spread, some in zip(spreads, by_group, strict=True)
    ]
    chances = [next((_value(each, each.chance) for each in some if each.chance is not None), "") for some in by_group]
    if len(files_of((run for group in groups for run in group.runs), split)) > 1:
        listed = ", ".join(chance or "none" for chance in chances) if any(chances) else ""
        return ComparedRow(name, [Cell(text) for text in texts], listed)
    return ComparedRow(name, _cells(spreads, texts, lower=lower_is_better(name)), next(filter(None, chances), ""))


def _cells(spreads: Sequence[Spread | None], texts: Sequence[str], *, lower: bool) -> list[Cell]:
    """Returns the cells of a row. The best value is marked if the values still differ after rounding."""
    known = {text: spread.mean for text, spread in zip(texts, spreads, strict=True) if spread is not None}
    best = (min if lower else max)(known, key=lambda text: known[text]) if len(known) > 1 else None
    return [Cell(text, text == best) for text in texts]


def _number(spread: Spread | None) -> str:
    if spread is None:
        return ""
    return format_number(spread.mean) + ("" if spread.deviation is None else f" ± {format_number(spread.deviation, 2)}")


def _value(metric: Metric, value: float | None) -> str:
    if value is None:
        return ""
    return "none" if math.isnan(value) else percent(value, metric.unit)
