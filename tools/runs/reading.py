"""A run's folder as the report reads it: whatever is there, of a run that is finished, going on, or was cut off."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from tools.report.log_facts import LogFacts, read_log
from tools.report.series import Metrics, read_metrics
from utils.config import ConfigError, read_yaml
from utils.errors import UserError
from utils.files import expanded

QUIET_S = 900.0
"""A folder that is locked, and in which nothing was written for so long, is of a run that was killed or hangs."""
LARGEST_JSON = 400_000_000
"""Bytes of a file of predictions that is read, at most."""
FILES = ("config.yaml", "metrics.jsonl", "validation.jsonl", "evaluation.json", "log.txt")
PREDICTIONS = "predictions_"


@dataclass
class Run:
    """A run. ``name``: what the page calls it; ``remarks``: files that could not be read, and why."""

    folder: Path
    name: str
    config: dict[str, Any] | None
    metrics: Metrics
    validation: Metrics
    log: LogFacts
    evaluation: dict[str, dict[str, dict[str, Any]]]
    made_by: dict[str, Any]
    remarks: list[str] = field(default_factory=list)

    @property
    def task(self) -> str | None:
        task = (self.config or {}).get("task")
        return task if isinstance(task, str) else None

    @property
    def start(self) -> str | None:
        """The value of ``init.checkpoint``."""
        init = (self.config or {}).get("init")
        checkpoint = init.get("checkpoint") if isinstance(init, dict) else None
        return None if checkpoint is None else str(checkpoint)

    @property
    def steps(self) -> int | None:
        """The steps that the run is to train; None where neither its config nor its log says it."""
        train = (self.config or {}).get("train")
        steps = train.get("steps") if isinstance(train, dict) else None
        return steps if isinstance(steps, int) else self.log.steps

    @cached_property
    def state(self) -> tuple[str, bool]:
        """The state in words, and whether all is well with it."""
        step, steps = self.metrics.last_step, self.steps
        of = f" of {steps:,}" if steps else ""
        reason = f" ({self.log.stop})" if self.log.stop else ""
        if (self.folder / ".lock").exists() or (self.folder / ".lease").exists():
            quiet = self._quiet_s()
            if quiet < QUIET_S:
                return f"running, at step {step or 0:,}{of}", True
            return (
                f"killed or hanging at step {step or 0:,}{of}: nothing was written for {quiet / 60:.0f} minutes",
                False,
            )
        if step is None:
            return ("evaluated, not trained", True) if self.evaluation else (f"no step was logged{reason}", False)
        if steps and step < steps:
            return f"cut at step {step:,}{of}{reason}", False
        if self.evaluation:
            return f"finished, {step:,} steps", True
        if reason:
            return f"trained {step:,} steps, not evaluated{reason}", False
        return f"trained {step:,} steps, not evaluated", not _evaluates(self.config)

    def predictions(self) -> dict[str, Path]:
        """The files of predictions by split."""
        paths = sorted(self.folder.glob(f"{PREDICTIONS}*.json"))
        return {path.stem.removeprefix(PREDICTIONS): path for path in paths}

    def _quiet_s(self) -> float:
        """Seconds since a file of the run was written."""
        times = [os.path.getmtime(path) for name in (*FILES, ".lease") if (path := self.folder / name).exists()]
        return time.time() - max(times, default=0.0)


def read_runs(folders: Sequence[str]) -> list[Run]:
    """The runs, each with the shortest name that tells it from the others.

    Raises:
        UserError: one is no run's folder, or is given twice.
    """
    paths = [expanded(folder) for folder in folders]
    real = [os.path.realpath(path) for path in paths]
    for path, place in zip(paths, real, strict=True):
        if real.count(place) > 1:
            raise UserError(f"{path}: is given twice; name each run once")
    return [read_run(path, name) for path, name in zip(paths, _names(real), strict=True)]


def read_run(folder: Path, name: str) -> Run:
    """A run.

    Raises:
        UserError: the folder does not exist, or holds no run.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give the folder of a run, which has {FILES[0]} and {FILES[1]}")
    if not any((folder / file).is_file() for file in FILES) and not list(folder.glob(f"{PREDICTIONS}*.json")):
        inside = sorted(path.parent for path in folder.glob("*/config.yaml"))
        hint = f"did you mean {inside[0]}?" if inside else "give the folder of a run, its --output"
        raise UserError(f"{folder}: holds no run (none of {', '.join(FILES)}); {hint}")
    remarks: list[str] = []
    config = None
    try:
        config = read_yaml(folder / FILES[0])
    except ConfigError as error:
        remarks.append(str(error))
    metrics, validation = read_metrics(folder / "metrics.jsonl"), read_metrics(folder / "validation.jsonl")
    remarks += [*_damage("metrics.jsonl", metrics), *_damage("validation.jsonl", validation)]
    evaluation = read_json(folder / "evaluation.json", remarks)
    made_by = read_json(folder / "made_by.json", remarks)
    return Run(
        folder,
        name,
        config,
        metrics,
        validation,
        read_log(folder / "log.txt"),
        _evaluation_of(evaluation, folder, remarks),
        made_by if isinstance(made_by, dict) else {},
        remarks,
    )


def read_json(path: Path, remarks: list[str]) -> Any:
    """The JSON in a file; None where there is none, or with a remark where it cannot be read."""
    if not path.is_file():
        return None
    if path.stat().st_size > LARGEST_JSON:
        remarks.append(f"{path}: is not read, since it has more than {LARGEST_JSON / 1e6:.0f} MB")
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        remarks.append(f"{path}: is no JSON ({error}): was the run stopped while it wrote it?")
        return None


def _evaluation_of(values: Any, folder: Path, remarks: list[str]) -> dict[str, dict[str, dict[str, Any]]]:
    """The metrics by split and name, without anything that is none."""
    if values is None:
        return {}
    if not isinstance(values, dict):
        remarks.append(f"{folder / 'evaluation.json'}: holds no metrics")
        return {}
    return {
        str(split): {str(name): metric for name, metric in metrics.items() if isinstance(metric, dict)}
        for split, metrics in values.items()
        if isinstance(metrics, dict)
    }


def _evaluates(config: dict[str, Any] | None) -> bool:
    return bool((config or {}).get("evaluation"))


def _damage(file: str, metrics: Metrics) -> list[str]:
    """A remark on the lines of a file that hold no metrics."""
    if not metrics.damaged_count:
        return []
    numbers = ", ".join(map(str, metrics.damaged)) + (", …" if metrics.damaged_count > len(metrics.damaged) else "")
    words = "lines hold no metrics and are" if metrics.damaged_count > 1 else "line holds no metrics and is"
    return [f"{file}: {metrics.damaged_count:,} {words} left out ({numbers})"]


def _names(places: Sequence[str]) -> list[str]:
    """The paths without the beginning and the end that all share: ``variant-1`` for ``runs/variant-1/seed-0``."""
    parts = [Path(place).parts for place in places]
    if len(parts) == 1:
        return ["/".join(parts[0][-2:]).lstrip("/")]
    while all(len(part) > 1 for part in parts) and len({part[-1] for part in parts}) == 1:
        parts = [part[:-1] for part in parts]
    shared = next((n for n, level in enumerate(zip(*parts, strict=False)) if len(set(level)) > 1), min(map(len, parts)))
    return ["/".join(part[shared:]) or part[-1] for part in parts]
