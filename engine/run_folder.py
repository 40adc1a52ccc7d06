"""The folder of a run: ``config.yaml``, ``metrics.jsonl``, ``log.txt``, TensorBoard events and ``checkpoints/``."""

from __future__ import annotations

import json
import logging
import math
import os
from pathlib import Path
from typing import IO, Any

from engine.checkpoint import BEST_FILE, CHECKPOINTS, CONFIG_FILE, Checkpoint, list_checkpoints
from utils import distributed
from utils.config import Config, dump_config, read_yaml
from utils.errors import UserError
from utils.files import write_text

MAY_CHANGE = (
    "train.log_every",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.max_skipped_steps",
    "train.recompute",
    "train.peak_tflops",
    "data.workers",
    "data.max_broken",
    "data.cache_index",
    "evaluation",
)
"""Keys and sections that may change when a run is resumed: they do not affect training."""

MUST_STAY = ("evaluation.validation",)
"""Exceptions in these sections: the best weights so far were selected with them."""

logger = logging.getLogger(__name__)


class RunFolder:
    """The folder that a run writes to. Only rank 0 writes; every rank may read."""

    def __init__(self, path: Path):
        self.path = path
        self.checkpoints = path / CHECKPOINTS
        self.best = path / BEST_FILE
        self.metrics = path / "metrics.jsonl"
        self.validation = path / "validation.jsonl"
        self.log = path / "log.txt"

    @classmethod
    def open(
        cls, path: Path, config: Config, resume: bool, evaluate: bool = False
    ) -> tuple[RunFolder, Checkpoint | None]:
        """Create the folder, or open it with ``resume``; returns it and its newest checkpoint, None if there is none.

        Raises:
            UserError: if the folder cannot be written, holds a run and ``resume`` is false, or holds a run with another config;
                with ``evaluate``, also if its evaluation differs: the new metrics would replace those of the run.
        """
        folder = cls(path)
        saved = path / CONFIG_FILE
        checkpoints = list_checkpoints(folder.checkpoints)
        newest = checkpoints[-1].step if checkpoints else 0
        # A folder without a trained step may be reused: an earlier start failed, or the run was an evaluation.
        started = saved.exists() and (folder.metrics.exists() or newest > 0)
        if len(set(distributed.gather_objects((started, newest)))) > 1:
            raise UserError(
                f"{path}: not every rank sees the same files; --output must be on a disk that all nodes share"
            )
        if newest and not saved.exists():
            raise UserError(f"{path} holds checkpoints of a run whose {CONFIG_FILE} is gone; give another --output")
        if started and not resume:
            raise UserError(f"{path} already holds a run; add --resume to resume it, or give another --output")
        if started:
            folder._require_same_config(saved, config, evaluate)
        if distributed.rank() == 0:
            try:
                path.mkdir(parents=True, exist_ok=True)
                write_text(saved, dump_config(config))
            except OSError as error:
                raise UserError(f"--output {path}: cannot be written: {error.strerror}") from None
        distributed.barrier()
        return folder, checkpoints[-1] if checkpoints else None

    def _require_same_config(self, saved: Path, config: Config, evaluate: bool) -> None:
        before, now = _flat(read_yaml(saved)), _flat(config.model_dump(mode="json"))
        changed = [
            f"{key} was {before.get(key)!r}, is now {now.get(key)!r}"
            for key in sorted(before.keys() | now.keys())
            if before.get(key) != now.get(key) and not (_may_change(key) and not (evaluate and _affects_metrics(key)))
        ]
        if changed:
            more = f" (and {len(changed) - 3} more)" if len(changed) > 3 else ""
            raise UserError(
                f"{saved}: this run had another config: {'; '.join(changed[:3])}{more}; give another --output"
                + (f", with init.checkpoint={self.path}" if evaluate else "")
            )


def _may_change(key: str) -> bool:
    return _is_in(key, MAY_CHANGE) and not _is_in(key, MUST_STAY)


def _affects_metrics(key: str) -> bool:
    """Whether a key of the evaluation changes its metrics, and not only its speed."""
    return key.startswith("evaluation.") and not key.endswith((".batch_size", ".precision", ".panels"))


def _is_in(key: str, sections: tuple[str, ...]) -> bool:
    return any(key == section or key.startswith(f"{section}.") for section in sections)


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(values, dict):
        return {prefix: values}
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}.{key}" if prefix else str(key))
    return flat


def _json_line(values: dict[str, float]) -> str:
    """One line of JSON. NaN and infinity, which JSON lacks, become null."""
    return json.dumps({name: value if math.isfinite(value) else None for name, value in values.items()}) + "\n"


class MetricsLog:
    """Writes ``metrics.jsonl`` (a line per logged step), ``validation.jsonl`` (a line per validation), and both as TensorBoard
    events."""

    def __init__(self, folder: RunFolder, after_step: int):
        """Open for appending, after removing lines later than ``after_step``: a run may have been killed after them."""
        for path in (folder.metrics, folder.validation):
            self._truncate(path, after_step)
        self._validation = folder.validation
        self._file: IO[str] = folder.metrics.open("a", encoding="utf-8")
        # Imported here: the import takes a second, and only the rank that writes needs it.
        from torch.utils.tensorboard import SummaryWriter

        self._events = SummaryWriter(str(folder.path / "tensorboard"), purge_step=after_step + 1)

    @staticmethod
    def _truncate(path: Path, step: int) -> None:
        if not path.exists():
            return
        kept = []
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                values = json.loads(line)
            except json.JSONDecodeError:
                break
            if values["step"] > step:
                break
            kept.append(line + "\n")
        write_text(path, "".join(kept))

    def write(self, values: dict[str, float]) -> None:
        """Append one line of ``values``, among them ``step``."""
        self._file.write(_json_line(values))
        self._file.flush()
        for name, value in values.items():
            if name != "step":
                self._events.add_scalar(name, value, int(values["step"]))

    def write_validation(self, step: int, values: dict[str, float]) -> None:
        """Append the metrics of the validation after ``step``."""
        with self._validation.open("a", encoding="utf-8") as file:
            file.write(_json_line({"step": step, **values}))
            file.flush()
            os.fsync(file.fileno())
        for name, value in values.items():
            self._events.add_scalar(f"validation/{name}", value, step)

    def sync(self) -> None:
        """Flush all lines to the disk: a checkpoint must never be newer than its metrics."""
        os.fsync(self._file.fileno())
        self._events.flush()

    def close(self) -> None:
        self._file.close()
        self._events.close()
