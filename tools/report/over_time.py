"""Shows how the predictions for the same examples change from one validation pass to the next."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from engine.run_files import VALIDATION_PREDICTIONS_FILE
from tasks import TASKS
from tasks.drawing import spread
from tasks.finetune import FineTuneTask
from tasks.kinds import find_task
from tools.report.judging import MALFORMED, Judged, judged
from tools.runs.reading import Run
from utils.config import bind
from utils.errors import UserError

MAX_VALIDATIONS = 8
"""Maximum number of validation passes that are shown as columns, spread from the first to the last."""

Predictions = Sequence[Mapping[str, Any]]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class OverTime:
    """The predictions for the same examples from several validation passes.

    Attributes:
        rows: index and text of each example, and its prediction at each of ``steps`` (None if missing).
        kept: number of validation passes whose predictions the run keeps.
    """

    steps: list[int]
    rows: list[tuple[int, str, list[Judged | None]]]
    kept: int


def over_time(run: Run) -> OverTime | None:
    """Returns the predictions that a run keeps from its validation passes, or None if it keeps none."""
    kept = read_kept(run)
    if not kept:
        return None
    steps = [sorted(kept)[index] for index in spread(len(kept), MAX_VALIDATIONS)]
    questions = _questions(run)
    columns = [_judged(run, kept[step], questions) for step in steps]
    rows = [(number, last.subject, [column.get(number) for column in columns]) for number, last in columns[-1].items()]
    return OverTime(steps, rows, len(kept))


def read_kept(run: Run) -> dict[int, Predictions]:
    """Returns the kept predictions by validation step. Adds a remark to the run for lines that cannot be read."""
    path, kept, unreadable = run.folder / VALIDATION_PREDICTIONS_FILE, {}, 0
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            try:
                values = json.loads(line)
                predictions = [dict(one) for one in values["predictions"] if isinstance(one["number"], int)]
                kept[int(values["step"])] = predictions
            except (ValueError, KeyError, TypeError, RecursionError):
                unreadable += 1
    if unreadable:
        run.remarks.append(f"{path}: {unreadable} lines cannot be read")
    return {step: predictions for step, predictions in kept.items() if predictions}


def _judged(run: Run, predictions: Predictions, questions: Any | None) -> dict[int, Judged]:
    """Returns the predictions from one validation pass, by the index of their example.

    Args:
        questions: result of :func:`_questions`.
    """
    numbers = [int(one["number"]) for one in predictions]
    plain = [{name: value for name, value in one.items() if name != "number"} for one in predictions]
    known = questions is not None and max(numbers) < len(questions)
    items = [questions[number] for number in numbers] if known and questions is not None else None
    try:
        found = judged(plain, items, run.task)
    except MALFORMED as error:
        run.remarks.append(
            f"{VALIDATION_PREDICTIONS_FILE}: not in the format of task {run.task} ({type(error).__name__}: {error})"
        )
        found = [Judged(number, f"example {number}", "") for number in numbers]
    return dict(zip(numbers, found, strict=True))


def _questions(run: Run) -> Any | None:
    """Returns the validation split if the task is question answering, whose predictions do not say whether they are right.
    Returns None for other tasks, or if the split cannot be read."""
    if run.task not in ("vqa", "video_qa") or run.config is None:
        return None
    assert run.task in TASKS
    try:
        kind = find_task(run.task).load()
        config = cast(Any, bind(run.config, kind.config))
        task = cast(type[FineTuneTask[Any, Any, Any]], kind.task)
        return task.read_split(config, config.evaluation.validation, "evaluation.validation")
    except (UserError, OSError):
        logger.info("%s: the validation split cannot be read", run.folder)
        return None
