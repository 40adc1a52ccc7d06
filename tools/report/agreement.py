"""Compares the predictions of several runs: how many examples all runs get right, and the examples on which they differ."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from html import escape

from tasks.drawing import Panel
from tools.report.examples import SplitPredictions, panel_of
from tools.report.judging import Judged
from tools.report.pictures import Room, figures
from tools.runs.reading import Run

THUMBNAIL = 170
"""Maximum length of an image in the table, in pixels."""
MOST_IMAGES = 2
"""Maximum number of images that are shown for an example."""

Compared = Sequence[tuple[Run, SplitPredictions]]


def agreement(
    runs: Sequence[Run], predictions: Sequence[Sequence[SplitPredictions]], room: Room, count: int = 12
) -> str:
    """Returns a table for each split that several runs predicted, with up to ``count`` examples on which they differ; empty
    without such a split."""
    parts = []
    for split in dict.fromkeys(split.split for splits in predictions for split in splits):
        by_run = [
            (run, found)
            for run, splits in zip(runs, predictions, strict=True)
            for found in splits
            if found.split == split and all(example.right is not None for example in found.judged)
        ]
        # Only examples that are the same in all runs can be compared.
        if len(by_run) > 1 and len({tuple(example.subject for example in found.judged) for _, found in by_run}) == 1:
            parts.append(_compared(split, by_run, count, room))
    return "".join(parts)


def _compared(split: str, by_run: Compared, count: int, room: Room) -> str:
    rows = list(zip(*(found.judged for _, found in by_run), strict=True))
    if by_run[0][0].task == "pretrain":
        return _shares_compared(split, by_run, rows, count, room)
    right = [sum(bool(example.right) for example in row) for row in rows]
    every, none = sum(number == len(by_run) for number in right), right.count(0)
    differ = [row for row, number in zip(rows, right, strict=True) if 0 < number < len(by_run)]
    text = f"{every:,} of {len(rows):,} examples are right in all runs, {none:,} in none, {len(differ):,} in some."
    head = "".join(f"<th>{escape(run.name)}</th>" for run, _ in by_run)
    step = max(1, len(differ) // max(1, count))
    lines = [_row(row, by_run, room) for row in differ[::step][:count]]
    table = f'<table class="left"><tr class="head"><th></th>{head}</tr>{"".join(lines)}</table>' if lines else ""
    return f'<h3>{escape(split)}</h3><p>{text}</p><div class="scroll">{table}</div>'


def _shares_compared(split: str, by_run: Compared, rows: Sequence[Sequence[Judged]], count: int, room: Room) -> str:
    """For pre-training, where an example has several boxes and ranks, and few are all right: the examples that differ most."""
    means = ", ".join(
        f"{escape(run.name)} {100 * sum(example.score or 0.0 for example in found.judged) / len(rows):.1f} %"
        for run, found in by_run
    )
    apart = sorted(rows, key=lambda row: min(one.score or 0.0 for one in row) - max(one.score or 0.0 for one in row))
    head = "".join(f"<th>{escape(run.name)}</th>" for run, _ in by_run)
    lines = [_row(row, by_run, room) for row in apart[:count]]
    text = f"Average share of an example's boxes and ranks that are right: {means}. The examples that differ most are below."
    table = f'<table class="left"><tr class="head"><th></th>{head}</tr>{"".join(lines)}</table>'
    return f'<h3>{escape(split)}</h3><p>{text}</p><div class="scroll">{table}</div>'


def _row(row: Sequence[Judged], by_run: Compared, room: Room) -> str:
    """An example: its images once, or each run's boxes next to its answer."""
    panels = [
        panel_of(found, example, found.predictions[example.number], Counter())
        for example, (_, found) in zip(row, by_run, strict=True)
    ]
    boxes = any(picture.boxes for panel in panels for picture in panel.pictures)
    once = "" if boxes else _images(panels[0], room)
    cells = []
    for example, panel in zip(row, panels, strict=True):
        mark = '<b class="yes">✓</b>' if example.right else '<b class="no">✗</b>'
        cells.append(f"<td>{_images(panel, room) if boxes else ''}{mark} {escape(example.answer)}</td>")
    return f"<tr><th>{once}{row[0].number} · {escape(row[0].subject)}</th>{''.join(cells)}</tr>"


def _images(panel: Panel, room: Room) -> str:
    """The images of a panel; empty if the images are the prediction, as in retrieval."""
    return figures(panel.pictures, room, THUMBNAIL) if len(panel.pictures) <= MOST_IMAGES else ""
