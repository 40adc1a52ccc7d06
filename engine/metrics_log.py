"""Writes the metrics of a run to ``metrics.jsonl``, ``validation.jsonl`` and the trackers (TensorBoard and Weights & Biases), and
some predictions from each validation pass to ``validation_predictions.jsonl``."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from engine.config import WandbConfig
from engine.run_folder import RunFolder
from engine.trackers.opening import Tracker, open_trackers
from utils.files import open_regular, parse_json, write_text
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
        self._trackers: list[Tracker] = open_trackers(folder, wandb)
        streams = ((folder.metrics, ""), (folder.validation, "validation/"))
        past = [(values, prefix) for path, prefix in streams for values in keep_until(path, after_step)]
        for values, prefix in sorted(past, key=lambda line: line[0]["step"]):
            self._show(values, prefix)
        self._metrics = _Lines(folder.metrics)
        self._validation = _Lines(folder.validation)
        remove_after_step(folder.validation_predictions, after_step)
        self._predictions = _Lines(folder.validation_predictions)

    def write(self, values: dict[str, float]) -> None:
        """Appends one line of ``values``, which must contain ``step``."""
        self._metrics.append(values)
        self._show(values, "")

    def write_validation(
        self, step: int, values: dict[str, float], predictions: Sequence[Mapping[str, Any]] = ()
    ) -> None:
        """Appends the metrics of the validation pass after ``step``, and its ``predictions``, if there are any."""
        self._validation.append({"step": step, **values})
        self._validation.sync()
        if predictions:
            self._predictions.append({"step": step, "predictions": list(predictions)})
            self._predictions.sync()
        self._show({"step": step, **values}, "validation/")

    def sync(self) -> None:
        """Flushes all lines to disk, so that a checkpoint is never newer than its metrics."""
        self._metrics.sync()
        for tracker in self._trackers:
            tracker.flush()

    def close(self) -> None:
        self._metrics.close()
        self._validation.close()
        self._predictions.close()
        for tracker in self._trackers:
            tracker.close()

    def _show(self, values: dict[str, float], prefix: str) -> None:
        scalars = {prefix + name: value for name, value in values.items() if name != "step"}
        for tracker in self._trackers:
            tracker.add_values(scalars, int(values["step"]))


class _Lines:
    """A file of JSON lines, opened for appending when the first line is written."""

    def __init__(self, path: Path):
        self.path = path
        self._file: IO[str] | None = None
        self._failed = False

    def append(self, values: Mapping[str, Any]) -> None:
        line = _json_line(values)
        try:
            if self._file is not None and not self.path.exists():  # the folder was deleted or renamed
                self._file.close()
                self._file = None
                self.path.parent.mkdir(parents=True, exist_ok=True)
            if self._file is None:
                self._file = self.path.open("a", encoding="utf-8")
            self._file.write("\n" + line if self._failed else line)  # the failed write may have left half a line
            self._file.flush()
            self._failed = False
        except OSError as error:
            self._fail(error)

    def sync(self) -> None:
        try:
            if self._file is not None:
                os.fsync(self._file.fileno())
        except OSError as error:
            self._fail(error)

    def close(self) -> None:
        try:
            if self._file is not None:
                self._file.close()
        except OSError as error:  # closing flushes, which can fail again
            self._fail(error)

    def _fail(self, error: OSError) -> None:
        if not self._failed:
            logger.warning("%s cannot be written (%s); the following lines are missing", self.path, error.strerror)
        self._failed = True


def keep_until(path: Path, step: int) -> list[dict[str, float]]:
    """Removes the lines of steps after ``step`` and, with a warning, the lines that do not contain metrics. Returns the values in
    the remaining lines."""
    if not path.exists():
        return []
    kept, invalid = [], []
    for number, line in _lines(path):
        values = _metrics_in(line)
        if values is None:
            invalid.append(number)
        elif values["step"] <= step:
            kept.append(values)
    if invalid:
        logger.warning(
            "%s: %d lines contain no metrics and are removed; the first is line %d", path, len(invalid), invalid[0]
        )
    write_text(path, "".join(_json_line(values) for values in kept))
    return kept


def remove_after_step(path: Path, step: int) -> None:
    """Removes the predictions of steps after ``step``, and truncated lines."""
    if not path.exists():
        return
    kept = []
    for _, line in _lines(path):
        try:
            if parse_json(line)["step"] <= step:
                kept.append(line if line.endswith("\n") else f"{line}\n")
        except (ValueError, KeyError, TypeError):
            continue
    write_text(path, "".join(kept))


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yields the lines of a file with their line numbers. Only line feeds end a line, whereas str.splitlines() would also split
    at separators that JSON allows inside strings."""
    with open_regular(path) as file:
        yield from bounded_lines(file, LONGEST_LINE)


def _metrics_in(line: str) -> dict[str, float] | None:
    """Returns the numbers in a line, with null as NaN. Returns None if the line is truncated or contains anything other than
    numbers."""
    try:
        values = parse_json(line)
    except ValueError:
        return None
    if not isinstance(values, dict) or not isinstance(values.get("step"), int):
        return None
    numbers = {name: math.nan if value is None else value for name, value in values.items()}
    return numbers if all(isinstance(value, int | float) for value in numbers.values()) else None


def _json_line(values: Mapping[str, Any]) -> str:
    """Returns one line of JSON. NaN and infinity, which JSON cannot represent, become null."""
    finite = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in values.items()
    }
    return json.dumps(finite, ensure_ascii=False) + "\n"
