"""The metrics of a run: ``metrics.jsonl``, ``validation.jsonl`` and TensorBoard's curves."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import IO

from engine.checkpoint import CONFIG_FILE
from engine.curves import Curves, show_config
from engine.run_folder import RunFolder
from utils.files import write_text


class MetricsLog:
    """Writes ``metrics.jsonl`` (a line per logged step), ``validation.jsonl`` (a line per validation), and both as TensorBoard
    events: a curve of each value that is no constant, beside the config as text."""

    def __init__(self, folder: RunFolder, after_step: int):
        """Open for appending, after removing lines later than ``after_step``: a run may have been killed after them."""
        self._validation = folder.validation
        config = folder.path / CONFIG_FILE
        if config.is_file():
            # First: TensorBoard reads the files in order, and nothing that is added to one before the last.
            show_config(folder.events, config.read_text(encoding="utf-8"))
        self._curves = Curves(folder.events, purge_step=after_step + 1)
        for path, prefix in ((folder.metrics, ""), (folder.validation, "validation/")):
            self._truncate(path, prefix, after_step)
        self._file: IO[str] = folder.metrics.open("a", encoding="utf-8")

    def _truncate(self, path: Path, prefix: str, step: int) -> None:
        if not path.exists():
            return
        kept, whole = [], True
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                values = json.loads(line)
            except json.JSONDecodeError:
                break
            whole = whole and values["step"] <= step
            if whole:
                kept.append(line + "\n")
            for name, value in values.items():
                if name != "step":
                    self._curves.replay(prefix + name, value, int(values["step"]), purged=not whole)
        write_text(path, "".join(kept))

    def write(self, values: dict[str, float]) -> None:
        """Append one line of ``values``, among them ``step``."""
        self._file.write(_json_line(values))
        self._file.flush()
        for name, value in values.items():
            if name != "step":
                self._curves.add(name, value, int(values["step"]))

    def write_validation(self, step: int, values: dict[str, float]) -> None:
        """Append the metrics of the validation after ``step``."""
        with self._validation.open("a", encoding="utf-8") as file:
            file.write(_json_line({"step": step, **values}))
            file.flush()
            os.fsync(file.fileno())
        for name, value in values.items():
            self._curves.add(f"validation/{name}", value, step)

    def sync(self) -> None:
        """Flush all lines to the disk: a checkpoint must never be newer than its metrics."""
        os.fsync(self._file.fileno())
        self._curves.flush()

    def close(self) -> None:
        self._file.close()
        self._curves.close()


def _json_line(values: dict[str, float]) -> str:
    """One line of JSON. NaN and infinity, which JSON lacks, become null."""
    return json.dumps({name: value if math.isfinite(value) else None for name, value in values.items()}) + "\n"
