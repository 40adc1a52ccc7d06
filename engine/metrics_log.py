"""Writes the metrics of a run to ``metrics.jsonl``, ``validation.jsonl`` and the trackers (TensorBoard and Weights & Biases), and
some predictions from each validation pass to ``validation_predictions.jsonl``."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.config import WandbConfig
from engine.run_folder import RunFolder
from engine.trackers import TensorBoard, Tracker, Wandb, for_each
from utils.files import open_regular, parse_json, sync_file, write_text
from utils.lines import bounded_lines

LONGEST_LINE = 10_000_000
"""Maximum length of a line in bytes. Longer lines count as damaged. The longest lines contain the predictions from a validation
pass."""

logger = logging.getLogger(__name__)


class MetricsLog:
    """Writes ``metrics.jsonl`` (a line per logged step) and ``validation.jsonl`` (a line per validation pass), and sends the
    values of both to the run's trackers.

    If a line cannot be written, for example because the disk is full, a warning is logged and training continues.
    """

    def __init__(self, folder: RunFolder, after_step: int, wandb: WandbConfig | None = None):
        """Opens the files for appending, and removes all lines of steps after ``after_step``. A run that was killed before it
        saved its next checkpoint leaves such lines."""
        self.folder = folder
        self._failed: set[Path] = set()
        """Files whose last line could not be written."""
        self._trackers: list[Tracker] = [TensorBoard(folder), *([] if wandb is None else [Wandb(folder, wandb)])]
        for_each(self._trackers, lambda tracker: tracker.start())
        past = [(values, "") for values in keep_until(folder.metrics, after_step)]
        past += [(values, "validation/") for values in keep_until(folder.validation, after_step)]
        for values, prefix in sorted(past, key=lambda line: line[0]["step"]):
            self._show(values, prefix)
        keep_until(folder.validation_predictions, after_step, numbers=False)

    def write(self, values: dict[str, float]) -> None:
        """Appends one line of ``values``, which must contain ``step``."""
        self._append(self.folder.metrics, values)
        self._show(values, "")

    def write_validation(
        self, step: int, values: dict[str, float], predictions: Sequence[Mapping[str, Any]] = ()
    ) -> None:
        """Appends the metrics of the validation pass after ``step``, and its ``predictions``, if there are any."""
        self._append(self.folder.validation, {"step": step, **values}, sync=True)
        if predictions:
            lines = {"step": step, "predictions": list(predictions)}
            self._append(self.folder.validation_predictions, lines, sync=True)
        self._show({"step": step, **values}, "validation/")

    def sync(self) -> None:
        """Flushes all lines to disk, so that a checkpoint is never newer than its metrics."""
        try:
            if self.folder.metrics.exists():
                sync_file(self.folder.metrics)
        except OSError as error:
            self._report_failure(self.folder.metrics, error)
        for_each(self._trackers, lambda tracker: tracker.flush())

    def close(self) -> None:
        for_each(self._trackers, lambda tracker: tracker.close())

    def _show(self, values: dict[str, float], prefix: str) -> None:
        scalars = {prefix + name: value for name, value in values.items() if name != "step"}
        for_each(self._trackers, lambda tracker: tracker.add_values(scalars, int(values["step"])))

    def _append(self, path: Path, values: Mapping[str, Any], sync: bool = False) -> None:
        """Appends one line of JSON. NaN and infinity, which JSON cannot represent, become null."""
        finite = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in values.items()
        }
        line = json.dumps(finite, ensure_ascii=False) + "\n"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)  # the folder may have been deleted or renamed
            with path.open("a", encoding="utf-8") as file:
                file.write("\n" + line if path in self._failed else line)  # the failed write may have left half a line
            if sync:
                sync_file(path)
            self._failed.discard(path)
        except OSError as error:
            self._report_failure(path, error)

    def _report_failure(self, path: Path, error: OSError) -> None:
        if path not in self._failed:
            logger.warning("%s cannot be written (%s); the following lines are missing", path, error.strerror)
        self._failed.add(path)


def keep_until(path: Path, step: int, *, numbers: bool = True) -> list[dict[str, Any]]:
    """Removes the lines of steps after ``step`` and, with a warning, the lines that are damaged. Returns the values in the
    remaining lines.

    Args:
        path: a file of JSON lines that contain ``step``.
        step: last step to keep.
        numbers: whether all values are numbers. In this case, null becomes NaN.
    """
    if not path.exists():
        return []
    kept: list[dict[str, Any]] = []
    texts: list[str] = []
    damaged: list[int] = []
    # Only line feeds end a line, whereas str.splitlines() would also split at separators that JSON allows inside strings.
    with open_regular(path) as file:
        for number, line in bounded_lines(file, LONGEST_LINE):
            values = _values_in(line, numbers)
            if values is None:
                damaged.append(number)
            elif values["step"] <= step:
                kept.append(values)
                texts.append(line if line.endswith("\n") else f"{line}\n")
    if damaged:
        logger.warning("%s: %d lines are damaged and are removed; the first is line %d", path, len(damaged), damaged[0])
    write_text(path, "".join(texts))
    return kept


def _values_in(line: str, numbers: bool) -> dict[str, Any] | None:
    """Returns the values in a line. Returns None if the line is truncated, has no step, or, with ``numbers``, contains anything
    other than numbers."""
    try:
        values = parse_json(line)
    except ValueError:
        return None
    if not isinstance(values, dict) or not isinstance(values.get("step"), int):
        return None
    if not numbers:
        return values
    values = {name: math.nan if value is None else value for name, value in values.items()}
    return values if all(isinstance(value, int | float) for value in values.values()) else None
