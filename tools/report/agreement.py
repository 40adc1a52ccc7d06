"""Compares the predictions of several runs: how many examples all runs get right, and the examples on which they differ."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tasks.drawing import Panel
from tools.report.examples import SplitPredictions, panel_of
from tools.report.groups import Group
from tools.report.judging import Judged
from tools.report.pictures import Picture, Room, pictures_of

THUMBNAIL = 170
"""Maximum length of an image in the table, in pixels."""
MAX_IMAGES = 2
"""Maximum number of images that are shown for an example."""

Predictions = Mapping[Path, Sequence[SplitPredictions]]
"""The predictions of each run, by the run's folder."""


@dataclass(frozen=True)
class Answer:
    """The prediction by the first run in a column.

    Attributes:
        right: whether the prediction is right; None if the runs in the column disagree.
        share: text that says how many of the column's runs are right, if the column has several runs.
    """

    right: bool | None
    text: str
    share: str
    pictures: list[Picture]


@dataclass(frozen=True)
class CommonExample:
    """An example that all runs predicted.

    Attributes:
        pictures: images of the example, unless the answers contain images.
    """

    number: int
    subject: str
    pictures: list[Picture]
    answers: list[Answer]


@dataclass(frozen=True)
class CommonSplit:
    """A split that several runs predicted, with examples on which they differ.

    Attributes:
        columns: names of the runs or groups.
        several_seeds: whether a column has several runs.
    """

    split: str
    text: str
    columns: list[str]
    several_seeds: bool
    examples: list[CommonExample]


@dataclass(frozen=True)
class _ComparedExample:
    """An example with the judged prediction of each run, by column.

    Attributes:
        shares: mean score in each column, from 0 to 1.
    """

    by_column: list[list[Judged]]
    shares: list[float]

    @property
    def spread(self) -> float:
        return max(self.shares) - min(self.shares)


def common_splits(columns: Sequence[Group], predictions: Predictions, room: Room, count: int = 12) -> list[CommonSplit]:
    """Returns the splits for which several columns predicted the same examples, with up to ``count`` examples on which they
    differ."""
    found = []
    names = dict.fromkeys(split.split for group in columns for run in group.runs for split in predictions[run.folder])
    for name in names:
        known = [(group, _found(group, predictions, name)) for group in columns]
        known = [(group, splits) for group, splits in known if splits]
        subjects = {tuple(example.subject for example in split.judged) for _, splits in known for split in splits}
        # Only examples that are equal in all runs can be compared.
        if len(known) > 1 and len(subjects) == 1:
            found.append(_common(name, known, count, room))
    return found


def _found(group: Group, predictions: Predictions, name: str) -> list[SplitPredictions]:
    """Returns each run's predictions for a split, for the runs in a group whose predictions can all be judged."""
    splits = [split for run in group.runs for split in predictions[run.folder] if split.split == name]
    return [split for split in splits if all(example.right is not None for example in split.judged)]


def _common(
    name: str, known: Sequence[tuple[Group, Sequence[SplitPredictions]]], count: int, room: Room
) -> CommonSplit:
    pretrains = known[0][0].runs[0].task == "pretrain"
    rows = []
    for number in range(len(known[0][1][0].judged)):
        by_column = [[split.judged[number] for split in splits] for _, splits in known]
        # A pre-training example has several boxes and ranks, which are rarely all right, so its score is used.
        scores = [
            [float(one.score or 0.0) if pretrains else float(one.right or 0) for one in some] for some in by_column
        ]
        rows.append(_ComparedExample(by_column, [sum(some) / len(some) for some in scores]))
    if pretrains:
        means = [sum(row.shares[column] for row in rows) / len(rows) for column in range(len(known))]
        shares = ", ".join(f"{group.name} {100 * mean:.1f}%" for (group, _), mean in zip(known, means, strict=True))
        text = f"Average fraction of an example's boxes and ranks that are right: {shares}."
    else:
        all_right, none_right = sum(min(row.shares) == 1 for row in rows), sum(max(row.shares) == 0 for row in rows)
        mixed = len(rows) - all_right - none_right
        text = (
            f"{all_right:,} of {len(rows):,} examples are right in all runs, {none_right:,} in none, {mixed:,} in some."
        )
    chosen = _most_different(rows, count)
    if chosen:
        text += " The examples that differ most are below."
    examples = [_example(row, [splits for _, splits in known], room) for row in chosen]
    several_seeds = any(len(splits) > 1 for _, splits in known)
    return CommonSplit(name, text, [group.name for group, _ in known], several_seeds, examples)


def _most_different(rows: Sequence[_ComparedExample], count: int) -> list[_ComparedExample]:
    """Returns the examples on which the columns differ most. If too many examples differ equally, the result is spread over the
    split."""
    differ = sorted((row for row in rows if row.spread > 0), key=lambda row: -row.spread)
    tied = [row for row in differ if row.spread == differ[0].spread]
    return differ[:count] if len(tied) <= count else tied[:: len(tied) // max(1, count)][:count]


def _example(row: _ComparedExample, by_column: Sequence[Sequence[SplitPredictions]], room: Room) -> CommonExample:
    """Returns an example with its images shown once, or with each column's boxes next to its answer."""
    first = [some[0] for some in row.by_column]
    panels = [
        panel_of(splits[0], example, splits[0].predictions[example.number], Counter())
        for example, splits in zip(first, by_column, strict=True)
    ]
    boxes = any(picture.boxes for panel in panels for picture in panel.pictures)
    answers = []
    for some, panel in zip(row.by_column, panels, strict=True):
        right = sum(bool(one.right) for one in some)
        share = f"right in {right} of {len(some)} seeds" if len(some) > 1 else ""
        agreed = bool(right) if right in (0, len(some)) else None
        answers.append(Answer(agreed, some[0].answer, share, _pictures(panel, room) if boxes else []))
    once = [] if boxes else _pictures(panels[0], room)
    return CommonExample(first[0].number, first[0].subject, once, answers)


def _pictures(panel: Panel, room: Room) -> list[Picture]:
    """Returns the images of a panel, or none if the images are the prediction, as in retrieval."""
    return pictures_of(panel.pictures, room, THUMBNAIL) if len(panel.pictures) <= MAX_IMAGES else []
