"""Shows the predictions of a run: failures first, drawn if the held-out data are available, otherwise as text."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dataset.broken import BrokenRecordError
from tasks.drawing import Line, Panel
from tools.report.held_out import HeldOutSplit, read_split
from tools.report.judging import MALFORMED, Judged, chosen, judged, lines_of
from tools.report.pictures import Embedded, Picture, Room, pictures_of, sheet
from tools.runs.reading import Run, read_json
from utils.errors import UserError

MAX_SPLITS = 6
"""Maximum number of a run's splits whose predictions are shown."""

logger = logging.getLogger(__name__)


@dataclass
class SplitPredictions:
    """The judged predictions of a run's split.

    Attributes:
        held_out: the held-out data, or None if they cannot be read.
        why: the reason why the held-out data cannot be read.
    """

    split: str
    predictions: Sequence[Mapping[str, Any]]
    judged: list[Judged]
    held_out: HeldOutSplit | None
    why: str = ""


def read_predictions(run: Run) -> list[SplitPredictions]:
    """Returns the predictions of each split. Adds a remark to the run for each file that cannot be read."""
    found = []
    paths = run.predictions()
    for split, path in list(paths.items())[:MAX_SPLITS]:
        values = read_json(path, run.remarks)
        if values is None:
            continue
        if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
            run.remarks.append(f"{path}: contains no list of predictions")
            continue
        found.append(_read(run, split, values))
    if len(paths) > MAX_SPLITS:
        run.remarks.append(f"predictions of the first {MAX_SPLITS} of {len(paths)} splits are shown")
    return found


def _read(run: Run, split: str, predictions: list[dict[str, Any]]) -> SplitPredictions:
    held_out, why = None, ""
    try:
        held_out = read_split(run, split, predictions)
    except (UserError, OSError) as error:
        why = str(error).splitlines()[0]
    except Exception as error:  # the data may have any format; the page still shows the rest of the run
        logger.warning("%s: the held-out data of %s cannot be read", run.folder, split, exc_info=True)
        why = f"{type(error).__name__}: {error}"
    try:
        examples = judged(predictions, None if held_out is None else held_out.items, run.task)
    except MALFORMED as error:
        run.remarks.append(
            f"predictions of {split}: not in the format of task {run.task} ({type(error).__name__}: {error})"
        )
        return SplitPredictions(split, predictions, [Judged(n, "", "") for n in range(len(predictions))], None, why)
    return SplitPredictions(split, predictions, examples, held_out, why)


@dataclass(frozen=True)
class Card:
    """An example: lines above the pictures, the pictures side by side, and ``lines`` below the pictures or, if ``beside`` is
    true, to the right of them."""

    number: int
    right: bool | None
    above: Sequence[Line]
    pictures: list[Picture]
    lines: Sequence[Line]
    beside: bool


@dataclass(frozen=True)
class ShownSplit:
    """The predictions of a split that the page shows.

    Attributes:
        images: maximum number of pictures in a card.
        remarks: texts that say what cannot be shown.
    """

    split: str
    summary: str
    legend: str
    remarks: list[str]
    cards: list[Card]
    images: int


@dataclass(frozen=True)
class ShownPredictions:
    """The predictions of a run.

    Attributes:
        note: text that says why predictions are missing.
        sheets: sheets of examples that the run itself has drawn, by name.
    """

    note: str = ""
    splits: Sequence[ShownSplit] = ()
    sheets: Sequence[tuple[str, Embedded]] = ()


def shown_predictions(run: Run, splits: Sequence[SplitPredictions], count: int, room: Room) -> ShownPredictions:
    """Returns up to ``count`` predictions of each split of a run."""
    if not count:
        return ShownPredictions("Hidden by --examples 0.")
    if not splits:
        sheets = _sheets(run, room)
        return ShownPredictions(
            "" if sheets else "The run has no predictions yet; they are written when the run is evaluated.",
            sheets=sheets,
        )
    shown = []
    for number, split in enumerate(splits):
        share = room.share(len(splits) - number)
        shown.append(_shown(split, count, share))
        room.give_back(share)
    return ShownPredictions("", shown, _sheets(run, room) if any(split.why for split in splits) else ())


def _shown(split: SplitPredictions, count: int, room: Room) -> ShownSplit:
    cards, broken, images = [], Counter[str](), 1
    for example in chosen(split.judged, count):
        panel = panel_of(split, example, split.predictions[example.number], broken)
        if example.right is None and example.score is not None:
            panel = replace(panel, lines=(*panel.lines, Line(f"CIDEr {100 * example.score:.1f}", faint=True)))
        pictures = pictures_of(panel.pictures, room)
        beside = panel.beside and bool(pictures)
        cards.append(Card(example.number, example.right, panel.above, pictures, panel.lines, beside))
        images = max(images, len(panel.pictures))
    remarks = [f"Shown as text because the held-out data cannot be read: {split.why}"] if split.why else []
    notes = [f"{times} cannot be drawn: {reason}" for reason, times in broken.most_common(3)]
    notes += [f"{room.left_out} images are omitted: the page is limited in size"] if room.left_out else []
    remarks += ["; ".join(notes)] if notes else []
    legend = split.held_out.legend if split.held_out is not None and cards else ""
    return ShownSplit(split.split, _summary(split, count), legend, remarks, cards, images)


def panel_of(split: SplitPredictions, example: Judged, prediction: Mapping[str, Any], broken: Counter[str]) -> Panel:
    """Returns the panel of a prediction. If it cannot be drawn, the panel contains only text, and ``broken`` counts the
    reason."""
    if split.held_out is not None:
        try:
            if panel := split.held_out.draw(example.number, prediction):
                return panel
        except BrokenRecordError as error:
            broken[str(error)] += 1
        except Exception as error:  # one image must not stop the page
            logger.warning("example %d of %s cannot be drawn", example.number, split.split, exc_info=True)
            broken[f"{type(error).__name__}: {error}"] += 1
    return Panel((), lines_of(prediction))


def _summary(split: SplitPredictions, count: int) -> str:
    """Returns a text that says how many predictions are right, and which predictions are shown."""
    total, shown = len(split.judged), min(count, len(split.judged))
    right = sum(example.right is True for example in split.judged)
    if any(example.right is not None for example in split.judged):
        return (
            f"{right:,} of {total:,} right. {shown} are shown: failures first, the worst at the top, then right ones."
        )
    if any(example.score is not None for example in split.judged):
        return f"{shown} of {total:,} are shown: the lowest CIDEr first, then some of the highest."
    return f"{shown} of {total:,} are shown, spread over the split: the file does not say which are right."


def _sheets(run: Run, room: Room) -> list[tuple[str, Embedded]]:
    """Returns the sheets of examples that the run itself has drawn."""
    sheets = [(path.name, sheet(path, room)) for path in sorted(run.folder.glob("predictions*.png"))[:3]]
    return [(name, image) for name, image in sheets if image is not None]
