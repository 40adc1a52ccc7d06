"""Builds Vega-Lite charts of values over the steps of runs. The page draws them with Vega.

Names of runs and metrics come from files, but dots, brackets and quotes in field names have a special meaning in Vega-Lite. The
fields of our data are therefore ``line``, ``step``, ``value`` and ``v0``, ``v1``, …; names appear only as titles.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, Literal

import altair as alt
import numpy as np
import vl_convert

from tools.runs.series import Point, Series
from utils.printing import format_number

COLOURS = 8
"""Number of line colours in the style sheet. Additional lines are dashed."""
COLUMNS = 200
"""Maximum number of step intervals per line; each interval keeps its minimum and its maximum."""
MAX_POINTS = 2000
"""Maximum total number of points in a chart with many lines."""
HOVERS = 60
"""Maximum number of steps in a chart whose values are shown on hover."""
DOTS = 40
"""If a line has at most this number of points, each point is drawn as a dot."""
RAW_LINES = 4
"""If a chart has at most this number of lines, the values behind the smoothed lines are drawn as well."""
LOG_FROM = 50.0
"""An axis is logarithmic if the ratio of maximum to minimum is at least this value."""
HEIGHT = 200
"""Height of a chart in pixels; a chart is as wide as its column."""
TEXT = 13
"""Font size in pixels."""
EXPORTS = "window.vegaEmbed = vegaEmbed;"
"""JavaScript that makes the function ``vegaEmbed`` available to the page."""
LINE = ("line", "step", "value")
"""Columns of the points of lines."""

Table = dict[str, list[Any]]
"""Data of a chart: the names of the columns, and the rows."""


@dataclass(frozen=True)
class Line:
    """A line of a chart.

    Args:
        label: name in the legend and in tooltips.
        colour: index of the colour.
        points: the line as drawn.
        raw: the values before smoothing, drawn faintly.
        band: for the mean of several runs, the minimum and maximum over the runs at each point.
    """

    label: str
    colour: int
    points: Sequence[Point]
    raw: Sequence[Point] = ()
    band: Sequence[Point] = ()

    @classmethod
    def of(cls, series: Series, label: str, colour: int, scale: float = 1.0) -> Line:
        """Returns the line of one run, smoothed if it is long enough; values are multiplied by ``scale``."""
        points, smooth = scaled(series.points(), scale), scaled(series.smoothed(), scale)
        return cls(label, colour, smooth, points) if smooth else cls(label, colour, points)

    @classmethod
    def mean_of_seeds(cls, several: Sequence[Series], label: str, colour: int, scale: float = 1.0) -> Line:
        """Returns the mean line of runs that differ only in their seed, with a band, over the steps that all runs reached."""
        lines = [np.array(scaled(series.smoothed() or series.points(), scale)) for series in several]
        low, high = max(line[0, 0] for line in lines), min(line[-1, 0] for line in lines)
        steps = np.unique(np.concatenate([line[:, 0] for line in lines]))
        steps = steps[(steps >= low) & (steps <= high)]
        if not steps.size:
            return cls(label, colour, ())
        values = np.stack([np.interp(steps, line[:, 0], line[:, 1]) for line in lines])
        means = list(zip(steps.tolist(), values.mean(0).tolist(), strict=True))
        return cls(label, colour, means, band=list(zip(values.min(0).tolist(), values.max(0).tolist(), strict=True)))


@dataclass(frozen=True)
class Chart:
    """A chart of lines over steps.

    Args:
        title: title above the chart.
        lines: lines in the chart.
        unit: text after values in the title; "%" means that the values are fractions, which are shown in percent.
        may_be_log: whether the axis is logarithmic if the values span orders of magnitude.
        mark: a step to mark, and its label.
        from_zero: whether the axis includes zero.
        keys: whether a legend of the lines is shown below the title.
    """

    title: str
    lines: Sequence[Line]
    unit: str = ""
    may_be_log: bool = False
    mark: tuple[float, str] | None = None
    from_zero: bool = False
    keys: bool = False

    @property
    def drawn(self) -> list[Line]:
        return [line for line in self.lines if line.points]

    @property
    def legend(self) -> list[tuple[str, int]]:
        """Name and colour of each line."""
        return [(line.label, line.colour) for line in self.drawn]

    @property
    def values(self) -> list[float]:
        """All values in the chart."""
        points = (point[1] for line in self.drawn for point in (*line.points, *line.raw))
        return [*points, *(value for line in self.drawn for ends in line.band for value in ends)]

    @property
    def log(self) -> bool:
        values = self.values
        return self.may_be_log and min(values) > 0 and max(values) / min(values) >= LOG_FROM

    @property
    def note(self) -> str:
        """A note about the axis of values: its unit, or that the axis is logarithmic."""
        return "log" if self.log else f"in {self.unit.strip()}" if self.unit == " s" else ""

    @property
    def last(self) -> str:
        """The last value, if the chart has a single line."""
        if len(self.drawn) != 1:
            return ""
        value = self.drawn[0].points[-1][1]
        return f"{format_number(100 * value if self.unit == '%' else value)}{self.unit}"

    @property
    def spec(self) -> dict[str, Any]:
        """The chart as a Vega-Lite specification, with its data."""
        lines = self.drawn
        columns = min(COLUMNS, max(2, MAX_POINTS // len(lines)))
        points = [(n, step, value) for n, line in enumerate(lines) for step, value in thinned(line.points, columns)]
        raw = [(n, step, value) for n, line in enumerate(lines) for step, value in thinned(line.raw, columns)]
        bands = [
            (n, step, low, high)
            for n, line in enumerate(lines)
            if line.band
            for (step, _), (low, high) in _every(list(zip(line.points, line.band, strict=True)), columns)
        ]
        tables: dict[str, Table] = {
            "lines": _table(LINE, points),
            "hover": _table(["step", *(f"v{n}" for n in range(len(lines)))], _hover(lines)),
        }
        if raw and len(lines) <= RAW_LINES:
            tables["raw"] = _table(LINE, raw)
        if bands:
            tables["bands"] = _table(("line", "step", "low", "high"), bands)
        mark: Literal["left", "right"] | None = None
        if self.mark is not None:
            first, last = points[0][1], max(step for _, step, _ in points)
            mark = "right" if self.mark[0] > (first + last) / 2 else "left"
            tables["mark"] = {"columns": ["step", "label"], "rows": [list(self.mark)]}
        style = _Style(
            labels=tuple(line.label for line in lines),
            colours=tuple(line.colour for line in lines),
            percent=self.unit == "%",
            log=self.log,
            from_zero=self.from_zero,
            dots=len(lines) <= RAW_LINES and all(len(line.points) <= DOTS for line in lines),
            raw="raw" in tables,
            bands="bands" in tables,
            mark=mark,
        )
        return {**_style_spec(style), "description": self.title, "datasets": tables}


@dataclass(frozen=True)
class _Style:
    """Everything about a chart except its data and its title. Charts on the same page often share a style."""

    labels: tuple[str, ...]
    colours: tuple[int, ...]
    percent: bool
    log: bool
    from_zero: bool
    dots: bool
    raw: bool
    bands: bool
    mark: Literal["left", "right"] | None
    """The side of the marked step on which its label is placed."""


@lru_cache(maxsize=256)
def _style_spec(style: _Style) -> dict[str, Any]:
    """Returns a specification without data. Making one takes a tenth of a second, because altair validates it."""
    number = ".3~p" if style.percent else ".4~g"
    x = alt.X(
        "step:Q",
        title="step",
        scale=alt.Scale(nice=False, zero=False),
        axis=alt.Axis(format="~s", grid=False, tickMinStep=1, tickCount=5),
    )
    scale = alt.Scale(type="log", nice=False, padding=8) if style.log else alt.Scale(zero=style.from_zero)
    y = alt.Y("value:Q", title=None, scale=scale, axis=alt.Axis(format=number, tickCount=5))
    lines = list(range(len(style.labels)))
    colours = [f"var(--c{colour % COLOURS})" for colour in style.colours]
    colour = alt.Color("line:N", legend=None, scale=alt.Scale(domain=lines, range=colours))
    dashes = [[1, 0] if colour < COLOURS else [5, 3] for colour in style.colours]
    dash = alt.StrokeDash("line:N", legend=None, scale=alt.Scale(domain=lines, range=dashes))
    layers = []
    if style.bands:
        area = alt.Chart(alt.NamedData("bands")).mark_area(opacity=0.2, aria=False)
        layers.append(area.encode(x=x, y=alt.Y("low:Q", title=None), y2="high:Q", color=colour))
    if style.raw:
        faint = alt.Chart(alt.NamedData("raw")).mark_line(opacity=0.35, strokeWidth=1, aria=False)
        layers.append(faint.encode(x=x, y=y, color=colour))
    line = alt.Chart(alt.NamedData("lines")).mark_line(strokeWidth=1.8, aria=False)
    layers.append(line.encode(x=x, y=y, color=colour, strokeDash=dash))
    if style.dots:
        dots = alt.Chart(alt.NamedData("lines")).mark_point(size=22, filled=True, opacity=1, aria=False)
        layers.append(dots.encode(x=x, y=y, color=colour))
    if style.mark is not None:
        best = alt.Chart(alt.NamedData("mark"))
        layers.append(best.mark_rule(color="var(--faint)", strokeDash=[3, 3], aria=False).encode(x=x))
        shift = -5 if style.mark == "right" else 5
        text = best.mark_text(align=style.mark, dx=shift, dy=-6, baseline="bottom", color="var(--faint)", fontSize=TEXT)
        layers.append(text.encode(x=x, y=alt.value("height"), text="label:N"))
    near = alt.selection_point(
        name="near", fields=["step"], nearest=True, on="pointermove", clear="pointerout", empty=False
    )
    tooltips = [alt.Tooltip("step:Q", title="step", format=",.0f")]
    tooltips += [alt.Tooltip(f"v{n}:Q", title=label, format=number) for n, label in enumerate(style.labels)]
    rule = alt.Chart(alt.NamedData("hover")).mark_rule(color="var(--faint)", aria=False)
    shown = alt.condition(near, alt.value(0.6), alt.value(0))
    layers.append(rule.encode(x=x, opacity=shown, tooltip=tooltips).add_params(near))
    chart = alt.layer(*layers).properties(width="container", height=HEIGHT)
    chart = chart.configure(background="transparent", font="system-ui, sans-serif").configure_view(stroke=None)
    faint_colours = dict.fromkeys(("domainColor", "tickColor", "labelColor", "titleColor"), "var(--faint)")
    chart = chart.configure_axis(
        **faint_colours,
        gridColor="var(--rule)",
        labelFontSize=TEXT,
        titleFontSize=TEXT,
        titleFontWeight="normal",
        titlePadding=2,
    )
    return dict(chart.to_dict())


def scaled(points: Sequence[Point], scale: float) -> list[Point]:
    """Returns the points with values multiplied by ``scale``."""
    return [(step, value * scale) for step, value in points]


def thinned(points: Sequence[Point], columns: int) -> list[Point]:
    """Returns the minimum and the maximum of each of ``columns`` equal intervals of steps, and the last point, in order."""
    if len(points) <= 2 * columns:
        return list(points)
    first, width = points[0][0], (points[-1][0] - points[0][0]) / columns or 1.0
    intervals: dict[int, tuple[Point, Point]] = {}
    for point in points:
        index = min(columns - 1, int((point[0] - first) / width))
        low, high = intervals.get(index, (point, point))
        intervals[index] = (min(low, point, key=lambda p: p[1]), max(high, point, key=lambda p: p[1]))
    kept = [point for pair in intervals.values() for point in sorted(set(pair))]
    return kept if kept[-1] == points[-1] else [*kept, points[-1]]


@cache
def javascript() -> str:
    """Returns the JavaScript of Vega, Vega-Lite and vega-embed, for a page that needs no network."""
    version = ".".join(alt.SCHEMA_VERSION.removeprefix("v").split(".")[:2])
    try:
        return str(vl_convert.javascript_bundle(EXPORTS, version))
    except ValueError:  # the versions of vl-convert and altair differ, but Vega-Lite can read charts of other versions
        return str(vl_convert.javascript_bundle(EXPORTS))


def _every(items: Sequence[Any], max_items: int) -> list[Any]:
    """Returns up to ``max_items`` evenly spaced items, including the first and the last."""
    if len(items) <= max_items:
        return list(items)
    return [items[round(index * (len(items) - 1) / (max_items - 1))] for index in range(max_items)]


def _hover(lines: Sequence[Line]) -> list[tuple[float, ...]]:
    """Returns steps, each with the value of every line. Between the points of a line, values are interpolated."""
    steps = _every(sorted({step for line in lines for step, _ in line.points}), HOVERS)
    points = [np.array(line.points) for line in lines]
    columns = [np.interp(steps, each[:, 0], each[:, 1]) for each in points]
    return [(step, *map(float, values)) for step, values in zip(steps, zip(*columns, strict=True), strict=True)]


def _table(columns: Sequence[str], rows: Iterable[tuple[float, ...]]) -> Table:
    """Returns numbers as rows, rounded to the digits that a chart can show. The page converts the rows to objects, which would be
    larger."""
    return {"columns": list(columns), "rows": [[float(f"{value:.6g}") for value in row] for row in rows]}
