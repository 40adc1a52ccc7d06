"""Formats the status of runs as text: a page for one run, or a line for each of several runs."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Iterator, Sequence

from tools.runs.series import Point
from tools.status.facts import Loss, Status
from utils.printing import counted, duration, format_number

LABEL = 13
NARROWEST, WIDEST = 60, 140
ARROWS = {"falling": "↓", "rising": "↑", "level": "→", None: ""}
BLOCKS = "▁▂▃▄▅▆▇█"
BAR = 24
MAX_METRICS = 4

Row = tuple[str, str, int]
"""A label, its text, and the maximum number of lines."""


def page(status: Status, columns: int) -> str:
    """Returns a page of at most 28 lines."""
    columns = min(max(columns, NARROWEST), WIDEST)
    lines = [_cut(f"{status.name}: {status.text}", columns)]
    for label, text, max_lines in _rows(status):
        wrapped = textwrap.wrap(
            printable(text), columns - LABEL, max_lines=max_lines, placeholder=" …", break_on_hyphens=False
        )
        lines += [f"{label if not number else '':{LABEL}}{line}" for number, line in enumerate(wrapped)]
    return "\n".join(lines) + "\n"


def _rows(status: Status) -> Iterator[Row]:
    rows = [
        ("progress", _progress(status), 1),
        ("rate", _rate(status), 1),
        ("time", _time(status), 1),
        ("losses", _losses(status), 4),
        ("validation", _validation(status), 2),
        ("kept", _kept(status), 3),
        ("checkpoints", _checkpoints(status), 3),
        ("ranks", _ranks(status), 2),
        ("records", _records(status), 2),
        ("starts", _starts(status), 3),
        ("warnings", _warnings(status), 3),
        ("files", "; ".join(status.remarks), 2),
    ]
    return (row for row in rows if row[1])


def _progress(status: Status) -> str:
    if not status.steps:
        return f"step {status.step:,}"
    share = min(1.0, status.step / status.steps)
    full = int(share * BAR)
    return f"{'█' * full}{'░' * (BAR - full)} {share:.0%}, step {status.step:,} of {status.steps:,}"


def _rate(status: Status) -> str:
    parts = []
    for rate, when in ((status.recent, "recently"), (status.overall, "overall")):
        numbers = [
            f"{format_number(value, 3)} {unit}"
            for value, unit in ((rate.steps_per_s, "steps/s"), (rate.samples_per_s, "samples/s"))
            if value is not None
        ]
        parts += [f"{when} {' and '.join(numbers)}"] if numbers else []
    return "; ".join(parts)


def _time(status: Status) -> str:
    parts = []
    if status.left_s and status.state != "finished":
        end = time.strftime("%Y-%m-%d %H:%M", time.localtime(time.time() + status.left_s))
        parts.append(f"{duration(status.left_s)} left" + (f", until {end}" if status.state == "running" else ""))
    if status.elapsed_s is not None:
        parts.append(f"{duration(status.elapsed_s)} trained")
    if status.started:
        parts.append(f"started {status.started}")
    return "; ".join([*parts, f"last written {duration(status.quiet_s)} ago"])


def _losses(status: Status) -> str:
    parts = [f"{name} {_loss(loss)}" for name, loss in status.losses.items()]
    curve = sparkline(status.loss_curve)
    # Parts must not be broken across lines.
    return " ".join(part.replace(" ", "\N{NO-BREAK SPACE}") + "  " for part in [*parts[:1], curve, *parts[1:]] if part)


def _loss(loss: Loss) -> str:
    return f"{format_number(loss.last)} {ARROWS[loss.trend]}".rstrip()


def _validation(status: Status) -> str:
    found = status.validation
    if found is None:
        return ""
    if found.metric is None or found.value is None or found.best is None:
        shown = ", ".join(f"{name} {format_number(value)}" for name, value in list(found.values.items())[:MAX_METRICS])
        return f"step {found.step:,}: {shown}"
    best = (
        "the best so far"
        if found.best_step == found.step
        else f"best {format_number(found.best)} at {found.best_step:,}"
    )
    improving = "" if found.before is None else f", still improving ({format_number(found.before)} before)"
    return f"step {found.step:,}: {found.metric} {format_number(found.value)}, {best}{improving}"


def _kept(status: Status) -> str:
    parts = (
        f"{found.split}: {found.metric} {format_number(found.before)} before, {format_number(found.value)} now"
        for found in status.kept
    )
    return "; ".join(parts)


def _checkpoints(status: Status) -> str:
    if not status.checkpoints:
        return "none"
    parts = []
    for saved in reversed(status.checkpoints):
        size, age = f"{saved.bytes / 1e6:,.0f} MB", duration(saved.age_s)
        state = saved.fault or ("intact" if saved.hashed else "complete")
        parts.append(f"step {saved.step:,} ({size}, {age} ago, {state})")
    return ", ".join(parts)


def _ranks(status: Status) -> str:
    parts = []
    if (ranks := status.ranks) is not None:
        own, data = (
            f"{format_number(ranks.slowest_s, 3)} s for its own part of a step",
            f"{format_number(ranks.data_s, 3)} s of it waiting for data",
        )
        factor = f"{ranks.slowest_s / ranks.median_s if ranks.median_s > 0 else 1.0:.2f} times the median"
        often = f"the slowest in {ranks.share:.0%} of the recent lines"
        parts.append(f"slowest is rank {ranks.slowest}: {own}, {data}, {factor}; {often}")
    if status.data_wait is not None:
        parts.append(f"rank 0 waits for data {status.data_wait:.0%} of the time")
    return "; ".join(parts)


def _records(status: Status) -> str:
    kinds = [
        f"{kind} (not counted yet)" if count is None else f"{count:,} {kind}" for kind, count in status.broken.items()
    ]
    return ": ".join(filter(None, [status.records or ("broken" if kinds else ""), ", ".join(kinds)]))


def _starts(status: Status) -> str:
    parts = []
    if status.starts > 1 or status.resumed:
        parts.append(
            f"{max(status.starts, status.resumed)} starts, {status.resumed} of which resumed from a checkpoint"
        )
    if status.skipped_steps:
        parts.append(
            f"{counted(status.skipped_steps, 'step', 'steps')} skipped, since a loss or gradient was not finite"
        )
    if status.stops:
        when, text = status.stops[-1]
        parts.append(f"{counted(len(status.stops), 'stop', 'stops')}, the last {when}: {text}")
    return "; ".join(parts)


def _warnings(status: Status) -> str:
    if not status.warning_count:
        return ""
    when, text = status.warnings[-1]
    return f"{status.warning_count:,}, the last {when}: {text.splitlines()[0]}"


def table(statuses: Sequence[Status], columns: int) -> str:
    """Returns a line for each run, below a line of titles."""
    rows = [("run", "state", "step", "steps/s", "left", "loss", "best", ""), *map(_cells, statuses)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ("  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
    return "".join(f"{_cut(line, max(columns, NARROWEST))}\n" for line in lines)


def _cells(status: Status) -> tuple[str, ...]:
    step = f"{status.step:,}" + (f"/{status.steps:,}" if status.steps else "")
    speed = status.recent.steps_per_s or status.overall.steps_per_s
    left = duration(status.left_s) if status.left_s and status.state != "finished" else ""
    loss = status.losses.get("loss")
    best = status.validation.best if status.validation else None
    notes = [counted(status.warning_count, "warning", "warnings")] if status.warning_count else []
    notes += ["resumed once" if status.resumed == 1 else f"resumed {status.resumed} times"] if status.resumed else []
    notes += ["damaged checkpoints"] if any(saved.fault for saved in status.checkpoints) else []
    cells = (
        status.name,
        status.state,
        step,
        "" if speed is None else format_number(speed, 3),
        left,
        "" if loss is None else _loss(loss),
        "" if best is None else format_number(best),
        ", ".join(notes),
    )
    return tuple(printable(cell) for cell in cells)


def sparkline(points: Sequence[Point]) -> str:
    """Returns a curve of block characters, one per point, scaled from the minimum to the maximum; empty for fewer than three
    points."""
    values = [value for _, value in points]
    low, high = min(values, default=0.0), max(values, default=0.0)
    if len(values) < 3 or low == high:
        return ""
    return "".join(BLOCKS[min(len(BLOCKS) - 1, int((value - low) / (high - low) * len(BLOCKS)))] for value in values)


def printable(text: str) -> str:
    """Returns the text without terminal control characters: files may contain anything."""
    return "".join(c if c.isprintable() or c in "\n\N{NO-BREAK SPACE}" else "?" for c in text)


def _cut(line: str, columns: int) -> str:
    line = printable(line).replace("\n", " ")
    return line if len(line) <= columns else f"{line[: columns - 2]} …"
