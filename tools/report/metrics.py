"""Tables of the final metrics: of one run, next to chance and published numbers, or of several groups of runs side by side."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tasks.image_blind import ADVICE, unbeaten_baselines
from tools.report.groups import Group, Spread
from tools.runs.reading import Run
from utils.printing import format_number

LOWER = re.compile(r"loss|error|perplexity|(median|mean) rank|distance", re.I)
"""Names of metrics for which lower is better. For all other metrics, higher is better."""

Metric = Mapping[str, Any]


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
    return [_split(split, metrics) for split, metrics in run.evaluation.items()]


def compared_metrics(groups: Sequence[Group]) -> ComparedMetrics:
    """Returns the metrics of several groups, with the best value in each row marked, followed by loss, speed and steps."""
    runs = [run for group in groups for run in group.runs]
    sections = []
    splits = list(dict.fromkeys(split for run in runs for split in run.evaluation))
    for split in splits:
        names = dict.fromkeys(name for run in runs for name in run.evaluation.get(split, {}))
        rows = [_row(name, [[_metric(run, split, name) for run in group.runs] for group in groups]) for name in names]
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
    if any(len(splits_of(metric for run in runs for metric in run.evaluation.get(s, {}).values())) > 1 for s in splits):
        note += " Rows whose runs were measured on different files have no best value."
    return ComparedMetrics([*sections, ("training", training)], note)


def lower_is_better(name: str) -> bool:
    return bool(LOWER.search(name))


def number_of(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def splits_of(metrics: Iterable[Metric]) -> set[str]:
    """Returns the files on which metrics were measured."""
    return {str(metric["split"]) for metric in metrics if "split" in metric}


def percent(value: float, unit: str) -> str:
    """Formats a value as in tables: a fraction in percent, a score multiplied by 100."""
    return f"{100 * value:.1f}" + ("%" if unit == "share" else "")


def spread_text(spread: Spread, unit: str) -> str:
    """Returns a mean and its standard deviation over seeds: 71.2 ± 0.8%."""
    if spread.deviation is None:
        return percent(spread.mean, unit)
    return f"{100 * spread.mean:.1f} ± {percent(spread.deviation, unit)}"


def _split(split: str, metrics: Mapping[str, Metric]) -> SplitMetrics:
    shown = {name: metric for name, metric in metrics.items() if metric.get("unit") != "count"}
    columns: list[tuple[str, Callable[[Metric], str]]] = [("measured", lambda metric: _value(metric, "value"))]
    if any("interval" in metric for metric in shown.values()):
        columns.append(("95% interval", _interval))
    for key in ("chance", "published"):
        if any(isinstance(metric.get(key), int | float) for metric in shown.values()):
            columns.append((key, lambda metric, key=key: _value(metric, key)))  # type: ignore[misc]
    rows = []
    for name, metric in shown.items():
        value, chance = number_of(metric.get("value")), number_of(metric.get("chance"))
        share = value if value is not None and metric.get("unit") == "share" and 0 <= value <= 1 else None
        line = None if chance is None else min(1.0, max(0.0, chance))
        rows.append(MetricRow(name, [text(metric) for _, text in columns], share, line))
    sizes = [f"{_count(metric.get('value'))} {name}" for name, metric in metrics.items() if name not in shown]
    rules = dict.fromkeys(
        str(metric[key])
        for metric in shown.values()
        for key in ("rule", "split", "weights", "training")
        if metric.get(key)
    )
    facts = unbeaten_baselines({name: number_of(metric.get("value")) for name, metric in metrics.items()})
    warning = f"{', and '.join(facts)}; {ADVICE}" if facts else ""
    note = "; ".join([", ".join(sizes), *rules]).strip("; ")
    return SplitMetrics(split, [title for title, _ in columns], rows, warning, note)


def _metric(run: Run, split: str, name: str) -> Metric:
    return run.evaluation.get(split, {}).get(name, {})


def _row(name: str, by_group: Sequence[Sequence[Metric]]) -> ComparedRow:
    """Returns a row of the comparison. If runs were measured on different files, the chance level of each value is listed, and
    no value is marked as the best."""
    metrics = [metric for some in by_group for metric in some if metric]
    unit = str(metrics[0].get("unit", "share"))
    if unit == "count":
        sizes = [dict.fromkeys(_count(metric["value"]) for metric in some if "value" in metric) for some in by_group]
        return ComparedRow(name, [Cell(", ".join(some)) for some in sizes])
    numbers = [[number_of(metric.get("value")) for metric in some] for some in by_group]
    spreads = [Spread.of([number for number in some if number is not None]) for some in numbers]
    nothing = ["none" if any("value" in metric for metric in some) else "" for some in by_group]
    texts = [spread_text(s, unit) if s is not None else none for s, none in zip(spreads, nothing, strict=True)]
    chances = [next(filter(None, (_value(metric, "chance") for metric in some)), "") for some in by_group]
    if len(splits_of(metrics)) > 1:
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


def _value(metric: Metric, key: str) -> str:
    if key == "value" and "value" in metric and metric["value"] is None:
        return "none"
    value = number_of(metric.get(key))
    return "" if value is None else percent(value, str(metric.get("unit", "share")))


def _count(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int | float) else str(value)


def _interval(metric: Metric) -> str:
    ends = metric.get("interval")
    if not isinstance(ends, list) or not all(isinstance(end, int | float) for end in ends):
        return ""
    return f"[{', '.join(f'{100 * end:.1f}' for end in ends)}]"
