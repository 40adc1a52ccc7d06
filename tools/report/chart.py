"""Draws charts as inline SVG: one or several lines over the steps of runs, on axes with round ticks, with values on hover."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from tools.report.ticks import Axis, short, written, y_axis
from tools.runs.series import Point, Series

WIDTH, HEIGHT = 440, 210
LEFT, RIGHT, TOP, BOTTOM = 46, 16, 8, 24
COLUMNS = 55
"""Maximum number of hover positions in a chart."""
COLOURS = 8
DOTS = 40
"""Maximum number of points for which each point of a line has a dot."""


@dataclass(frozen=True)
class Line:
    """``points``: as drawn; ``smooth``: means, drawn above the points, which are faint in this case; ``colour``: its index."""

    label: str
    colour: int
    points: Sequence[Point]
    smooth: Sequence[Point] = ()

    @classmethod
    def of(cls, series: Series, label: str, colour: int, scale: float = 1.0) -> Line:
        """Returns the line of a series, its values multiplied by ``scale``."""
        return cls(label, colour, _scaled(series.points(), scale), _scaled(series.smoothed(), scale))

    @property
    def read(self) -> Sequence[Point]:
        """The points whose values are shown on hover."""
        return self.smooth or self.points


@dataclass(frozen=True)
class Chart:
    """``unit``: follows values, such as " %"; ``may_be_log``: whether the axis of values may be logarithmic; ``mark``: a step to
    mark, and its label; ``from_zero``: whether the axis includes zero; ``keys``: whether the chart has a legend of line
    colours."""

    title: str
    lines: Sequence[Line]
    unit: str = ""
    may_be_log: bool = False
    mark: tuple[float, str] | None = None
    from_zero: bool = False
    keys: bool = False

    def html(self) -> str:
        """The chart as a figure; empty without any point."""
        lines = [line for line in self.lines if line.points]
        if not lines:
            return ""
        steps = [step for line in lines for step, _ in line.points]
        low, high = min(steps), max(steps)
        x = Axis(low, high if high > low else low + 1, LEFT, WIDTH - RIGHT)
        values = (value for line in lines for _, value in line.points)
        y = y_axis(values, HEIGHT - BOTTOM, TOP, may_be_log=self.may_be_log, from_zero=self.from_zero)
        note = ' <span class="faint">log</span>' if y.log else ""
        parts = [*self._axes(x, y), *self._marked(x)]
        for line in lines:
            parts += _drawn(line, x, y)
        parts += self._values(lines, x)
        svg = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(self.title)}">{"".join(parts)}</svg>'
        last = self._last(lines)
        return f"<figure><figcaption>{escape(self.title)}{note}{last}</figcaption>{svg}</figure>"

    def _last(self, lines: Sequence[Line]) -> str:
        if len(lines) > 1:
            keys = (f'<span class="key">{_swatch(line.colour)}{escape(line.label)}</span>' for line in lines)
            return f'<span class="last">{"".join(keys)}</span>' if self.keys else ""
        return f'<span class="last">{written(lines[0].read[-1][1])}{escape(self.unit)}</span>'

    def _axes(self, x: Axis, y: Axis) -> list[str]:
        parts = []
        for tick in y.ticks(4):
            at = f"{y.place(tick):.1f}"
            parts.append(f'<path class="grid" d="M{LEFT} {at}H{WIDTH - RIGHT}"/>')
            parts.append(f'<text class="y" x="{LEFT - 5}" y="{at}">{short(tick)}{escape(self.unit.strip())}</text>')
        for tick in x.ticks(5):
            at = f"{x.place(tick):.1f}"
            parts.append(f'<path class="grid" d="M{at} {HEIGHT - BOTTOM}v4"/>')
            parts.append(f'<text class="x" x="{at}" y="{HEIGHT - BOTTOM + 16}">{short(tick)}</text>')
        parts.append(f'<path class="axis" d="M{LEFT} {TOP}V{HEIGHT - BOTTOM}H{WIDTH - RIGHT}"/>')
        return parts

    def _marked(self, x: Axis) -> list[str]:
        if self.mark is None or not x.low <= self.mark[0] <= x.high:
            return []
        at = x.place(self.mark[0])
        side = "end" if at > WIDTH / 2 else "start"
        shift = -4 if side == "end" else 4
        label = f'<text class="mark" text-anchor="{side}" x="{at + shift:.1f}" y="{HEIGHT - BOTTOM - 6}">'
        return [
            f'<path class="mark" d="M{at:.1f} {TOP}V{HEIGHT - BOTTOM}"/>{label}{escape(self.mark[1])}</text>',
        ]

    def _values(self, lines: Sequence[Line], x: Axis) -> list[str]:
        """Invisible columns, each of which shows the values at its step on hover."""
        steps = sorted({step for line in lines for step, _ in line.read})
        if len(steps) > COLUMNS:
            steps = [steps[round(place * (len(steps) - 1) / (COLUMNS - 1))] for place in range(COLUMNS)]
        places = [x.place(step) for step in steps]
        edges = [LEFT, *((a + b) / 2 for a, b in itertools.pairwise(places)), WIDTH - RIGHT]
        parts = []
        for step, left, right in zip(steps, edges[:-1], edges[1:], strict=True):
            told = [f"step {step:,.0f}"]
            for line in lines:
                value = _nearest(line.read, step)
                told.append(
                    f"{line.label}: {written(value)}{self.unit}" if line.label else f"{written(value)}{self.unit}"
                )
            title = escape("\n".join(told))
            parts.append(
                f'<rect class="at" x="{left:.1f}" y="{TOP}" width="{max(0.1, right - left):.1f}" '
                f'height="{HEIGHT - TOP - BOTTOM}"><title>{title}</title></rect>'
            )
        return parts


def thinned(points: Sequence[Point], place: Callable[[float], float]) -> list[Point]:
    """The points or, if several share a column of pixels, the minimum and the maximum of each column, ordered by step."""
    columns: dict[int, tuple[Point, Point]] = {}
    for point in points:
        column = int(place(point[0]))
        low, high = columns.get(column, (point, point))
        columns[column] = (min(low, point, key=lambda p: p[1]), max(high, point, key=lambda p: p[1]))
    return [point for pair in columns.values() for point in sorted(set(pair))]


def legend(labels: Sequence[str]) -> str:
    """A legend of the runs' colours."""
    keys = (f'<span class="key">{_swatch(n)}{escape(label)}</span>' for n, label in enumerate(labels))
    return f'<p class="legend">{" ".join(keys)}</p>'


def _swatch(colour: int) -> str:
    """A swatch in the colour of a line."""
    return f'<i class="{_style(colour)}"></i>'


def _style(colour: int) -> str:
    return f"c{colour % COLOURS}" + (" dashed" if colour >= COLOURS else "")


def _drawn(line: Line, x: Axis, y: Axis) -> list[str]:
    style, points = _style(line.colour), thinned(line.points, x.place)
    parts = [_path(points, f"{style} raw" if line.smooth else style, x, y)]
    if line.smooth:
        parts.append(_path(thinned(line.smooth, x.place), style, x, y))
    elif len(points) <= DOTS:
        parts += [f'<circle class="{style}" cx="{x.place(a):.1f}" cy="{y.place(b):.1f}" r="2.2"/>' for a, b in points]
    return parts


def _path(points: Sequence[Point], style: str, x: Axis, y: Axis) -> str:
    places = "L".join(f"{x.place(step):.1f} {y.place(value):.1f}" for step, value in points)
    return f'<path class="line {style}" d="M{places}"/>'


def _nearest(points: Sequence[Point], step: float) -> float:
    """Returns the value at the nearest step."""
    place = bisect.bisect_left(points, step, key=lambda point: point[0])
    near = points[max(0, place - 1) : place + 1]
    return min(near, key=lambda point: abs(point[0] - step))[1]


def _scaled(points: Sequence[Point], scale: float) -> list[Point]:
    return [(step, value * scale) for step, value in points]
