"""Selects the curves of a page: losses, learning rate, validation, throughput; for several runs, one line each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape

from tools.report.chart import Chart, Line, legend
from tools.report.ticks import written
from tools.runs.names import MEMORY, is_of_training
from tools.runs.reading import Run
from tools.runs.series import Series

PARTS = ("loss", "grad_norm", "loss_scale")
"""Values of ``metrics.jsonl`` that are listed first and last among the losses."""
SPEED = {
    "samples_per_s": ("samples per second", 1.0, ""),
    "images_per_s": ("images per second", 1.0, ""),
    "tokens_per_s": ("tokens per second", 1.0, ""),
    "step_s": ("time of a step", 1.0, " s"),
    "data_wait": ("waiting for data", 100.0, " %"),
    "ranks/slowest_s": ("time for its own part of a step, slowest rank", 1.0, " s"),
    "ranks/median_s": ("time for their own part of a step, median of the other ranks", 1.0, " s"),
    "tflops_per_s": ("TFLOP/s", 1.0, ""),
    "utilisation": ("utilisation of the peak", 100.0, " %"),
}
"""Display names of the throughput values in ``metrics.jsonl``: title, factor, unit."""
FIRST_VALIDATION = 9
"""Validation curves that are shown at once; the rest are collapsed."""


def training_charts(runs: Sequence[Run]) -> str:
    """The losses, the gradient norm, and the learning rate."""
    names = _names(runs, lambda run: run.metrics.series)
    losses = [name for name in names if is_of_training(name)]
    if all(_same(run, name, "loss") for run in runs for name in losses[:2]):  # the only loss is the total
        losses = ["loss", *losses[2:]]
    losses.sort(key=lambda name: (name in PARTS[1:], name != PARTS[0]))
    charts = [Chart(_loss_title(n), _lines(runs, n), may_be_log=True) for n in losses]
    if (rates := _rates(runs)).lines:
        charts.append(rates)
    return _grid([chart.html() for chart in _without_constants(charts)], runs) or _nothing(
        "No training step was logged."
    )


def validation_charts(runs: Sequence[Run]) -> str:
    """The metrics that change between validations; a single validation is shown as a table of numbers."""
    names = _names(runs, lambda run: run.validation.series)
    if not names:
        return _nothing("There was no validation during training.")
    charts = []
    for name in names:
        scale, unit = _unit_of(runs, name)
        lines = _lines(runs, name, lambda run: run.validation.series, scale)
        charts.append(Chart(name, lines, unit, mark=_best(runs[0]) if len(runs) == 1 else None))
    selecting = {run.history.selects for run in runs}
    shown = [chart.html() for chart in sorted(_without_constants(charts), key=lambda c: c.title not in selecting)]
    first, more = shown[:FIRST_VALIDATION], shown[FIRST_VALIDATION:]
    text = _grid(first, runs) or _nothing("No metric changes from one validation to the next.")
    folded = f"<details><summary>{len(more)} more curves</summary>{_grid(more, runs)}</details>" if more else ""
    return f"{text}{folded}{_last_validation(runs, names)}"


def _last_validation(runs: Sequence[Run], names: Sequence[str]) -> str:
    """The numbers of the last validation of each run, collapsed."""
    heads = "".join(
        f"<th>{escape(run.name) if len(runs) > 1 else 'value'}<br>step {run.validation.last_step or 0:,}</th>"
        for run in runs
    )
    rows = []
    for name in names:
        last = (run.validation.series[name].last if name in run.validation.series else None for run in runs)
        scale, unit = _unit_of(runs, name)
        numbers = "".join(f"<td>{'' if point is None else written(point[1] * scale) + unit}</td>" for point in last)
        rows.append(f"<tr><th>{escape(name)}</th>{numbers}</tr>")
    table = f'<div class="scroll"><table><tr class="head"><th></th>{heads}</tr>{"".join(rows)}</table></div>'
    return f"<details><summary>The last validation in numbers</summary>{table}</details>"


def throughput(runs: Sequence[Run]) -> str:
    """A table of medians, and the curves."""
    names = [name for name in SPEED if any(name in run.metrics.series for run in runs)]
    if all(_same(run, "images_per_s", "samples_per_s") for run in runs):
        names = [name for name in names if name != "images_per_s"]
    memory = [n for n in _names(runs, lambda run: run.metrics.series) if MEMORY.search(n)]
    if not names + memory:
        return _nothing("No throughput was logged.")
    rows = []
    for name in names + memory:
        title, scale, unit = SPEED.get(name, (name, 1.0, ""))
        cells = "".join(_speed(run.metrics.series.get(name), scale, unit) for run in runs)
        rows.append(f"<tr><th>{escape(title)}</th>{cells}</tr>")
    heads = (
        f'<tr class="head"><th></th>{"".join(f"<th>{escape(run.name)}</th>" for run in runs)}</tr>'
        if len(runs) > 1
        else ""
    )
    charts = [
        Chart(SPEED[n][0], _lines(runs, n, scale=SPEED[n][1]), SPEED[n][2], from_zero=True).html()
        for n in names
        if n != "tflops_per_s"
    ]
    charts += [Chart(name, _lines(runs, name), from_zero=True).html() for name in memory]
    note = '<p class="faint">The median, and in brackets the range, over the lines of metrics.jsonl.</p>'
    return f'<div class="scroll"><table>{heads}{"".join(rows)}</table></div>{note}{_grid(charts, runs)}'


def _speed(series: Series | None, scale: float, unit: str) -> str:
    """A cell with the median of a series and its range."""
    if series is None:
        return "<td></td>"
    median, low, high = (written(value * scale, 3) for value in (series.median(), *series.range()))
    return f'<td>{median}{escape(unit)} <span class="faint">({low} to {high})</span></td>'


def _lines(
    runs: Sequence[Run],
    name: str,
    series_of: Callable[[Run], dict[str, Series]] = lambda run: run.metrics.series,
    scale: float = 1.0,
) -> list[Line]:
    """A line for each run that has the value."""
    return [
        Line.of(series_of(run)[name], run.name if len(runs) > 1 else "", number, scale)
        for number, run in enumerate(runs)
        if name in series_of(run)
    ]


def _rates(runs: Sequence[Run]) -> Chart:
    """The learning rates: for one run, all groups that differ; for several runs, the highest rate of each."""
    lines = []
    for number, run in enumerate(runs):
        groups: dict[str, Series] = {}
        for name, series in run.metrics.series.items():
            if name.startswith("lr/"):  # groups that differ only in weight decay have the same rate
                groups.setdefault(name.removeprefix("lr/").partition(",")[0], series)
        if len(runs) > 1 and groups:
            highest = max(groups.values(), key=lambda series: series.range()[1])
            lines.append(Line(run.name, number, highest.points()))
        elif groups:
            lines += [Line(label, place, series.points()) for place, (label, series) in enumerate(groups.items())]
    if len(lines) == 1:
        lines = [Line("", lines[0].colour, lines[0].points)]
    return Chart("learning rate" if len(runs) == 1 else "highest learning rate", lines, keys=len(runs) == 1)


def _best(run: Run) -> tuple[float, str] | None:
    return None if run.history.best is None else (run.history.best, f"best weights, step {run.history.best:,}")


def _unit_of(runs: Sequence[Run], name: str) -> tuple[float, str]:
    """Returns the factor for showing the values of a metric and the unit that follows them, as read from ``evaluation.json``."""
    units = {str(metrics[name].get("unit")) for run in runs for metrics in run.evaluation.values() if name in metrics}
    return (100.0, " %") if "share" in units else (100.0, "") if "score" in units else (1.0, "")


def _without_constants(charts: Sequence[Chart]) -> list[Chart]:
    """Returns charts of values that change; sizes of sets are constant, and shown in the table of metrics."""
    return [chart for chart in charts if len({value for line in chart.lines for _, value in line.points}) > 1]


def _names(runs: Sequence[Run], series_of: Callable[[Run], dict[str, Series]]) -> list[str]:
    return list(dict.fromkeys(name for run in runs for name in series_of(run)))


def _same(run: Run, one: str, other: str) -> bool:
    series = run.metrics.series
    return one in series and other in series and series[one].points() == series[other].points()


def _loss_title(name: str) -> str:
    return {"loss": "loss (total)", "grad_norm": "norm of the gradient", "loss_scale": "loss scale of fp16"}.get(
        name, name
    )


def _grid(charts: Sequence[str], runs: Sequence[Run]) -> str:
    drawn = [chart for chart in charts if chart]
    if not drawn:
        return ""
    keys = legend([run.name for run in runs]) if len(runs) > 1 else ""
    return f'{keys}<div class="charts">{"".join(drawn)}</div>'


def _nothing(words: str) -> str:
    return f'<p class="faint">{escape(words)}</p>'
