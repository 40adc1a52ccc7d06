"""The run that checks examine, and the report to which they add their findings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from engine.run_plan import RunPlan
from tasks.base import BaseTask
from tasks.binding import BoundRun
from tasks.finetune import FineTuneTask
from utils import distributed
from utils.config_files import Locations
from utils.findings import Finding


@dataclass
class PreparedRun:
    """A run whose parts are built, as far as they can be.

    Attributes:
        config: config of the run.
        task: class of the task.
        ranks: number of ranks of the run.
        tokenizer: the tokenizer; None if it could not be loaded.
        model: the model; None if it could not be built.
        training: builds micro-batches of the training data; None if they could not be read.
        held_out: held-out splits of a fine-tuning task, by config key.
        plan: plan of the run; None if the run has not been planned yet.
        file: the config file.
        locations: the locations of the keys of the config.
    """

    config: Any
    task: Any
    ranks: int
    tokenizer: Any = None
    model: Any = None
    training: Any = None
    held_out: dict[str, Any] = field(default_factory=dict)
    plan: RunPlan | None = None
    file: Path = Path()
    locations: Locations = field(default_factory=dict)

    @classmethod
    def of(cls, task: BaseTask[Any, Any, Any], bound: BoundRun | None = None) -> PreparedRun:
        """Returns the run of a task that is about to train on this process group. ``bound`` is its config, as it was read."""
        held_out = dict(task.held_out.by_key()) if isinstance(task, FineTuneTask) else {}
        ranks = distributed.world_size()
        run = cls(task.config, type(task), ranks, task.tokenizer, task.model, task.training, held_out, task.plan)
        if bound is not None:
            run.file, run.locations = bound.file, bound.read.locations
        return run

    @property
    def fine_tunes(self) -> bool:
        return issubclass(self.task, FineTuneTask)

    def training_data(self) -> Any:
        """Returns the training data; raises :class:`NotCheckedError` if they could not be read."""
        if self.training is None:
            why = "the model could not be built" if self.model is None else "the training data cannot be read"
            raise NotCheckedError(why)
        return self.training


class NotCheckedError(Exception):
    """Raised by a check that cannot run. The message says why."""


class Findings:
    """Collects what checks find.

    Attributes:
        findings: the problems.
    """

    def __init__(self) -> None:
        self.findings: list[Finding] = []

    def add(self, check: str, findings: Sequence[Finding], otherwise: str | None = None) -> bool:
        """Adds the findings of a check or, without findings, the line ``otherwise``; returns whether there are findings."""
        self.findings += findings
        if not findings and otherwise is not None:
            self.ok(check, otherwise)
        return bool(findings)

    def ok(self, check: str, text: str) -> None:
        """Adds a line about a check that found nothing wrong."""


class Check(NamedTuple):
    """A check.

    Attributes:
        section: the section of the doctor's report to which the check belongs.
        name: name of the check.
        run: the check, which adds to the findings what it finds about the run. If it raises a :class:`NotCheckedError`, the check
            could not be made; a :class:`~utils.errors.UserError` is a finding, too.
    """

    section: str
    name: str
    run: Callable[[Any, Any], None]
