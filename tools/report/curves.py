"""Selects the curves on a page (losses, learning rate, validation, throughput), with a line for each run or group of runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tools.report.charts import Chart, Line
from tools.report.groups import Group
from tools.runs.names import MEMORY, is_training_value
from tools.runs.reading import Run
from tools.runs.series import Series
from utils.printing import format_number

PARTS = ("loss", "grad_norm", "loss_scale")
"""Values in ``metrics.jsonl`` that are listed before or after the other losses."""
TITLES = {"loss": "loss (total)", "grad_norm": "norm of the gradient", "loss_scale": "loss scale of fp16"}
SPEED = {
    "samples_per_s": ("samples per second", ""),
    "images_per_s": ("images per second", ""),
    "tokens_per_s": ("tokens per second", ""),
    "step_s": ("step time", " s"),
    "data_wait": ("waiting for data", "%"),
    "ranks/slowest_s": ("time for its own work in a step, slowest rank", " s"),
    "ranks/median_s": ("time for their own work in a step, median of the other ranks", " s"),
    "tflops_per_s": ("TFLOP/s", ""),
    "utilisation": ("utilisation of the peak", "%"),
}
"""Display names of the throughput values in ``metrics.jsonl``, and their units. Fractions have the unit "%"."""
FIRST_VALIDATION = 9
"""Number of validation curves that are shown initially; the others are collapsed."""

Select = Callable[[Run], dict[str, Series]]


@dataclass(frozen=True)
class Curves:
    """The charts in a section.

    Attributes:
        legend: name and colour of each line, if several charts have the same lines.
        more: charts that are initially collapsed.
        note: explanation of the lines and bands, or of why charts are missing.
    """

    legend: list[tuple[str, int]]
    charts: list[Chart]
    note: str = ""
    more: Sequence[Chart] = ()


@dataclass(frozen=True)
class Numbers:
    """A table of numbers: a heading for each column, and a title and cells for each row."""

    columns: list[str]
    rows: list[tuple[str, list[str]]]


@dataclass(frozen=True)
class Validation:
    curves: Curves
    last: Numbers | None


@dataclass(frozen=True)
class Throughput:
    """The throughput of the runs: a table of medians, and curves.

    Attributes:
        several_seeds: whether a column of the table has several runs.
    """

    table: Numbers | None
    several_seeds: bool
    curves: Curves


def training_curves(groups: Sequence[Group]) -> Curves:
    """Returns the losses, the gradient norm, and the learning rate."""
    runs = _runs(groups)
    names = _names(runs, _metrics)
    losses = [name for name in names if is_training_value(name)]
    if all(_same(run, name, "loss") for run in runs for name in losses[:2]):  # the only loss is the total
        losses = ["loss", *losses[2:]]
    losses.sort(key=lambda name: (name in PARTS[1:], name != PARTS[0]))
    charts = [Chart(TITLES.get(name, name), _lines(groups, name, _metrics), may_be_log=True) for name in losses]
    charts.append(_rates(groups))
    note = "Only one step was logged, which is not enough for a curve." if losses else "No training step was logged."
    return _curves(groups, _changing(charts), note)


def validation_curves(groups: Sequence[Group]) -> Validation:
    """Returns curves for the metrics that change between validation passes, and the numbers from the last validation pass."""
    runs = _runs(groups)
    names = _names(runs, lambda run: run.validation.series)
    if not names:
        return Validation(Curves([], [], "The run was not validated during training."), None)
    best = runs[0].history.best if len(runs) == 1 else None
    mark = None if best is None else (float(best), f"best weights, step {best:,}")
    charts = []
    for name in names:
        scale, unit = _unit_of(runs, name)
        charts.append(Chart(name, _lines(groups, name, lambda run: run.validation.series, scale), unit, mark=mark))
    selecting = {run.history.selection_metric for run in runs}
    shown = sorted(_changing(charts), key=lambda chart: chart.title not in selecting)
    curves = _curves(groups, shown[:FIRST_VALIDATION], "No metric changes from one validation pass to the next.")
    improvement = runs[0].history.improvement if len(runs) == 1 else None
    note = (
        curves.note if improvement is None else f"{curves.note} {str(improvement).replace('step', 'Step', 1)}.".lstrip()
    )
    more = Curves(curves.legend, curves.charts, note, shown[FIRST_VALIDATION:])
    return Validation(more, _last_validation(runs, names))


def throughput(groups: Sequence[Group]) -> Throughput:
    """Returns a table of medians, and the curves."""
    runs = _runs(groups)
    names = [name for name in SPEED if any(name in run.metrics.series for run in runs)]
    if all(_same(run, "images_per_s", "samples_per_s") for run in runs):
        names = [name for name in names if name != "images_per_s"]
    memory = [name for name in _names(runs, _metrics) if MEMORY.search(name)]
    if not names + memory:
        return Throughput(None, False, Curves([], [], "No throughput was logged."))
    rows = []
    for name in names + memory:
        title, unit = SPEED.get(name, (name, ""))
        series = [[run.metrics.series[name] for run in group.runs if name in run.metrics.series] for group in groups]
        rows.append((title, [_speed(several, unit) for several in series]))
    charts = []
    for name in names + memory:
        title, unit = SPEED.get(name, (name, ""))
        if name != "tflops_per_s":
            charts.append(Chart(title, _lines(groups, name, _metrics), unit, from_zero=True))
    table = Numbers([group.name for group in groups] if len(groups) > 1 else [], rows)
    several_seeds = any(len(group.runs) > 1 for group in groups)
    return Throughput(table, several_seeds, _curves(groups, [chart for chart in charts if chart.drawn], ""))


def _lines(groups: Sequence[Group], name: str, select: Select, scale: float = 1.0) -> list[Line]:
    """Returns a line for each run or group that has the value."""
    lines = []
    for group in groups:
        several = [select(run)[name] for run in group.runs if name in select(run)]
        if len(several) > 1:
            lines.append(Line.mean_of_seeds(several, group.name, group.colour, scale))
        elif several:
            lines.append(Line.of(several[0], group.name, group.colour, scale))
    return lines


def _rates(groups: Sequence[Group]) -> Chart:
    """Returns a chart of the learning rates: for one run, all rates that differ; for several runs, the highest rate of each
    group."""
    lines = []
    for group in groups:
        rates: dict[str, Series] = {}
        for name, series in group.runs[0].metrics.series.items():
            if name.startswith("lr/"):  # parameter groups that differ only in weight decay have the same rate
                rates.setdefault(name.removeprefix("lr/").partition(",")[0], series)
        if len(groups) > 1 and rates:
            highest = max(rates.values(), key=lambda series: series.range()[1])
            lines.append(Line(group.name, group.colour, highest.points()))
        elif rates:
            lines += [Line(label, index, series.points()) for index, (label, series) in enumerate(rates.items())]
    if len(groups) > 1:
        return Chart("highest learning rate", lines)
    return Chart("learning rate", lines, keys=len(lines) > 1)


def _curves(groups: Sequence[Group], charts: list[Chart], nothing: str) -> Curves:
    if not charts:
        return Curves([], [], nothing)
    legend = [(group.name, group.colour) for group in groups] if len(groups) > 1 else []
    seeds = any(len(group.runs) > 1 for group in groups)
    return Curves(
        legend, charts, "Lines: mean over the seeds. Bands: minimum to maximum over the seeds." if seeds else ""
    )


def _last_validation(runs: Sequence[Run], names: Sequence[str]) -> Numbers:
    heads = [f"{run.name if len(runs) > 1 else 'value'}, step {run.validation.last_step or 0:,}" for run in runs]
    rows = []
    for name in names:
        last = [run.validation.series[name].last if name in run.validation.series else None for run in runs]
        scale, unit = _unit_of(runs, name)
        rows.append((name, ["" if point is None else _formatted(point[1] * scale, unit) for point in last]))
    return Numbers(heads, rows)


def _speed(several: Sequence[Series], unit: str) -> str:
    """Returns the median of a series, or the mean of several medians, and the range of all values."""
    if not several:
        return ""
    low, high = min(series.range()[0] for series in several), max(series.range()[1] for series in several)
    median = sum(series.median() for series in several) / len(several)
    low_text, high_text = (_formatted(value, unit, 3).removesuffix(unit) for value in (low, high))
    return f"{_formatted(median, unit, 3)} ({low_text} to {high_text})"


def _formatted(value: float, unit: str, digits: int = 4) -> str:
    return f"{format_number(100 * value if unit == '%' else value, digits)}{unit}"


def _unit_of(runs: Sequence[Run], name: str) -> tuple[float, str]:
    """Returns the factor for showing the values of a metric and its unit, as read from ``evaluation.json``."""
    measured = [each.get(name) for run in runs for each in run.evaluation.values()]
    units = {metric.unit for metric in measured if metric is not None}
    return (1.0, "%") if "share" in units else (100.0, "") if "score" in units else (1.0, "")


def _changing(charts: Sequence[Chart]) -> list[Chart]:
    """Returns the charts whose values change. Sizes of sets are constant, and are shown in the table of metrics."""
    return [chart for chart in charts if len(set(chart.values)) > 1]


def _metrics(run: Run) -> dict[str, Series]:
    return run.metrics.series


def _runs(groups: Sequence[Group]) -> list[Run]:
    return [run for group in groups for run in group.runs]


def _names(runs: Sequence[Run], select: Select) -> list[str]:
    return list(dict.fromkeys(name for run in runs for name in select(run)))


def _same(run: Run, one: str, other: str) -> bool:
    series = run.metrics.series
    return one in series and other in series and series[one].points() == series[other].points()
