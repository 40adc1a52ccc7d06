"""Reads the folder of a run that has finished, is still running, or was interrupted. Any file may be missing."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from engine.checkpoint import CHECKPOINTS, list_checkpoints
from engine.run_files import (
    CONFIG_FILE,
    EVALUATION_FILE,
    EVENTS_FILE,
    LOG_FILE,
    MADE_BY_FILE,
    METRICS_FILE,
    TENSORBOARD_FOLDER,
    VALIDATION_FILE,
)
from engine.saved_config import read_saved_config
from tasks.evaluation import Evaluation, Metric, read_evaluations
from tools.runs.finding import runs_below
from tools.runs.history import History, read_history
from tools.runs.series import Metrics, read_metrics
from utils.errors import UserError
from utils.events import Failed, LostRank, Stopped
from utils.files import expanded, parse_json, read_text
from utils.folder_lock import LEASE_FILE, LOCK_FILE
from utils.printing import counted

QUIET_S = 900.0
"""A run counts as killed or hanging if its folder is locked and nothing has been written for this number of seconds."""
QUIET_LINES = 3.0
"""If metrics are logged at longer intervals than :data:`QUIET_S`, the limit is the interval multiplied by this factor."""
MAX_LINES_BYTES = 1_000_000_000
"""Maximum size in bytes of a file of metrics or events that is read. A larger file is damaged, for example by a full disk."""
MAX_JSON_BYTES = 400_000_000
"""Maximum size in bytes of a prediction file that is read."""
FILES = (CONFIG_FILE, METRICS_FILE, VALIDATION_FILE, EVALUATION_FILE, EVENTS_FILE, LOG_FILE)
PREDICTIONS = "predictions_"


NEVER_STARTED = "never started"
"""State of a run that failed, or was asked to stop, before training began."""


class State(NamedTuple):
    """The state of a run.

    Attributes:
        name: running, hanging, killed, stopped, failed, cut, finished or :data:`NEVER_STARTED`.
        text: the state in words.
        healthy: whether nothing is wrong with the run.
    """

    name: str
    text: str
    healthy: bool


@dataclass
class Run:
    """A run.

    Attributes:
        name: display name of the run.
        remarks: texts that say which files could not be read, and why.
    """

    folder: Path
    name: str
    config: dict[str, Any] | None
    metrics: Metrics
    validation: Metrics
    history: History
    evaluation: dict[str, Evaluation]
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
        """Total number of training steps of the run; None if neither its config nor its events contain the number."""
        train = (self.config or {}).get("train")
        steps = train.get("steps") if isinstance(train, dict) else None
        return steps if isinstance(steps, int) else self.history.steps

    @cached_property
    def step(self) -> int | None:
        """The last known step: the last logged step, or the step of a later checkpoint. None if neither exists."""
        saved = [checkpoint.step for checkpoint in list_checkpoints(self.folder / CHECKPOINTS)]
        return max([*saved, *filter(None, [self.metrics.last_step])], default=None)

    @cached_property
    def state(self) -> State:
        """The state of the run."""
        step, steps, stop = self.step, self.steps, self.history.stop
        of = f" of {steps:,}" if steps else ""
        # A process that is stopped during a validation pass leaves its lock behind, so a recorded stop takes precedence over the
        # lock.
        if stop is None and (owner := self._owner()):
            return self._locked_state(owner, f"at step {step or 0:,}{of}")
        ended = "cut" if stop is None else "stopped" if isinstance(stop, Stopped) else "failed"
        reason = "" if stop is None else f" ({_reason(stop)})"
        if step is None:
            if self.evaluation:
                return State("finished", "evaluated, not trained", True)
            if stop is not None and not (self.folder / TENSORBOARD_FOLDER).exists():
                return State(NEVER_STARTED, f"never started{reason}", False)
            return State(ended, f"{ended} before a step was logged{reason}", False)
        if steps and step < steps:
            return State(ended, f"{ended} at step {step:,}{of}{reason}", False)
        if self.evaluation:
            return State("finished", f"finished, {counted(step, 'step', 'steps')}", True)
        text = f"trained {counted(step, 'step', 'steps')}, not evaluated{reason}"
        if reason or _evaluates(self.config):
            return State(ended, text, False)
        return State("finished", text, True)

    def _locked_state(self, owner: dict[str, Any], where: str) -> State:
        """Returns the state of a run whose folder is locked."""
        process = owner.get("process")
        if owner.get("host") == socket.gethostname() and isinstance(process, int) and not _is_alive(process):
            return State("killed", f"killed {where}: its process {process} no longer exists", False)
        quiet = self.quiet_s
        if quiet < self._quiet_limit_s():
            return State("running", f"running, {where}", True)
        return State("hanging", f"killed or hanging {where}: nothing was written for {quiet / 60:.0f} minutes", False)

    def _owner(self) -> dict[str, Any]:
        """Returns what the folder's lock records about the process that holds it, or an empty dictionary if there is no lock."""
        for name in (LOCK_FILE, LEASE_FILE):
            try:
                text = read_text(self.folder / name, errors="replace")
            except OSError:
                continue
            try:
                owner = parse_json(text)
            except ValueError:
                owner = None
            return owner if isinstance(owner, dict) and owner else {"host": None}
        return {}

    def _quiet_limit_s(self) -> float:
        """Returns the number of seconds without any output after which a run no longer counts as running."""
        elapsed = self.metrics.series.get("elapsed_s")
        if elapsed is None or len(elapsed.newest) < 2:
            return QUIET_S
        (_, before), (_, last) = list(elapsed.newest)[-2:]
        return max(QUIET_S, QUIET_LINES * (last - before))

    def metrics_of(self, split: str) -> tuple[Metric, ...]:
        """Returns the metrics of a split; empty if the split was not measured."""
        return self.evaluation[split].metrics if split in self.evaluation else ()

    def metric(self, split: str, name: str) -> Metric | None:
        """Returns a metric of a split, or None if it was not measured."""
        return self.evaluation[split].get(name) if split in self.evaluation else None

    def files_of(self, split: str) -> str | None:
        """Describes the files on which a split was measured; None if they are unknown."""
        facts = self.evaluation[split].facts if split in self.evaluation else None
        return None if facts is None else facts.split

    def predictions(self) -> dict[str, Path]:
        """Returns the prediction files by split."""
        paths = sorted(self.folder.glob(f"{PREDICTIONS}*.json"))
        return {path.stem.removeprefix(PREDICTIONS): path for path in paths}

    @property
    def quiet_s(self) -> float:
        """Seconds since the last write to a file of the run."""
        times = [os.path.getmtime(path) for name in (*FILES, LEASE_FILE) if (path := self.folder / name).exists()]
        return time.time() - max(times, default=0.0)


def read_runs(folders: Sequence[str]) -> list[Run]:
    """Returns the runs, each with the shortest name that distinguishes it from the others.

    Raises:
        UserError: if a folder is not a run folder, or is given twice.
    """
    paths = [expanded(folder) for folder in folders]
    real = [os.path.realpath(path) for path in paths]
    for path, real_path in zip(paths, real, strict=True):
        if real.count(real_path) > 1:
            raise UserError("is given twice", where=path, remedy="list each run once")
    return [read_run(path, name) for path, name in zip(paths, _names(real), strict=True)]


def read_run(folder: Path, name: str) -> Run:
    """Reads a run.

    Raises:
        UserError: if the folder does not exist, or contains no run.
    """
    if not folder.is_dir():
        raise UserError(
            "no such folder",
            where=folder,
            remedy=f"pass the folder of a run, which has {CONFIG_FILE} and {METRICS_FILE}",
        )
    if not any((folder / file).is_file() for file in FILES) and not list(folder.glob(f"{PREDICTIONS}*.json")):
        inside = [path for path in runs_below(folder) if path != folder]
        hint = f"did you mean {inside[0]}?" if inside else "pass the folder of a run, its --output"
        raise UserError(f"contains no run (none of {', '.join(FILES)})", where=folder, remedy=hint)
    remarks: list[str] = []
    config = None
    try:
        config = read_saved_config(folder / CONFIG_FILE)
    except UserError as error:
        remarks.append(str(error))
    metrics, validation, history = Metrics(), Metrics(), History()
    if _is_readable(folder / METRICS_FILE, remarks):
        metrics = read_metrics(folder / METRICS_FILE)
    if _is_readable(folder / VALIDATION_FILE, remarks):
        validation = read_metrics(folder / VALIDATION_FILE)
    remarks += [*_damage_remarks(METRICS_FILE, metrics), *_damage_remarks(VALIDATION_FILE, validation)]
    if _is_readable(folder / EVENTS_FILE, remarks):
        history = read_history(folder / EVENTS_FILE)
        remarks += history.remarks(folder / EVENTS_FILE)
    evaluation: dict[str, Evaluation] = {}
    try:
        evaluation = read_evaluations(folder)
    except ValueError as error:
        remarks.append(f"{folder / EVALUATION_FILE}: {error}")
    made_by = read_json(folder / MADE_BY_FILE, remarks)
    return Run(
        folder,
        name,
        config,
        metrics,
        validation,
        history,
        evaluation,
        made_by if isinstance(made_by, dict) else {},
        remarks,
    )


def _is_readable(path: Path, remarks: list[str]) -> bool:
    """Returns False, and adds a remark, if a file of metrics or events exists but cannot be read."""
    if path.exists() and not path.is_file():
        remarks.append(f"{path} is not a regular file and is ignored")
        return False
    if path.exists() and path.stat().st_size > MAX_LINES_BYTES:
        remarks.append(
            f"{path} is ignored, because it is larger than {MAX_LINES_BYTES / 1e9:g} GB; is the disk damaged?"
        )
        return False
    return True


def read_json(path: Path, remarks: list[str]) -> Any:
    """Returns the JSON in a file, or None if the file does not exist. If the file cannot be read, adds a remark and returns
    None."""
    if not path.is_file():
        return None
    if path.stat().st_size > MAX_JSON_BYTES:
        remarks.append(f"{path}: not read, because it is larger than {MAX_JSON_BYTES / 1e6:.0f} MB")
        return None
    try:
        return parse_json(read_text(path))
    except ValueError as error:
        remarks.append(f"{path}: not valid JSON ({error}): was the run stopped while writing it?")
        return None


def _reason(stop: Stopped | Failed | LostRank) -> str:
    """Returns why a run ended early, in one line."""
    text = f"by {stop.by}: {stop.message}" if isinstance(stop, Stopped) else stop.message
    return text.partition("\n")[0]


def _evaluates(config: dict[str, Any] | None) -> bool:
    return bool((config or {}).get("evaluation"))


def _damage_remarks(file: str, metrics: Metrics) -> list[str]:
    """Returns a remark about the lines of a file that contain no metrics, if there are any."""
    if not metrics.damaged_count:
        return []
    numbers = ", ".join(map(str, metrics.damaged)) + (", …" if metrics.damaged_count > len(metrics.damaged) else "")
    words = "lines contain no metrics and are" if metrics.damaged_count > 1 else "line contains no metrics and is"
    return [f"{file}: {metrics.damaged_count:,} {words} skipped ({numbers})"]


def _is_alive(process: int) -> bool:
    """Returns True if a process exists on this machine."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True  # the process belongs to another user
    return True


def _names(paths: Sequence[str]) -> list[str]:
    """Returns the paths without their common beginning and end: ``variant-1`` for ``runs/variant-1/seed-0``."""
    parts = [Path(path).parts for path in paths]
    if len(parts) == 1:
        return ["/".join(parts[0][-2:]).lstrip("/")]
    while all(len(part) > 1 for part in parts) and len({part[-1] for part in parts}) == 1:
        parts = [part[:-1] for part in parts]
    shared = next((n for n, level in enumerate(zip(*parts, strict=False)) if len(set(level)) > 1), min(map(len, parts)))
    return ["/".join(part[shared:]) or part[-1] for part in parts]
