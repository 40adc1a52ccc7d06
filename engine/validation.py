"""Validates a run at regular intervals and keeps the best weights."""

from __future__ import annotations

import logging
import math
from contextlib import AbstractContextManager

from engine.metrics_log import MetricsLog
from engine.run_folder import RunFolder
from engine.run_plan import RunPlan
from engine.saving import save_best
from engine.task import Task
from engine.trained import TrainedModel
from utils import distributed
from utils.events import StillImproving, Validated, finite_or_none

logger = logging.getLogger(__name__)


class Validator:
    """Validates a task, and saves the best weights so far in ``best.safetensors``.

    Args:
        task: the task. The best weights are those with the highest metric ``task.selection_metric``; if ``selection_metric`` is
            None, the task is never validated.
        plan: plan of the run. The last step is always followed by a validation pass.
        trained: the model. If weights are averaged, the averages are validated.
        folder: folder of the run.
    """

    def __init__(self, task: Task, plan: RunPlan, trained: TrainedModel, folder: RunFolder):
        self.task, self.run_plan, self.trained, self.folder = task, plan, trained, folder
        self.best: float | None = None
        """Highest value of the metric so far."""
        self.due = False
        """True if a validation pass must still run after the current step."""

    def set_due(self, step: int) -> None:
        """Sets :attr:`due` to True if a validation pass follows ``step``, otherwise to False."""
        assert self.run_plan.validate_every is not None
        self.due = self.task.selection_metric is not None and (
            step % self.run_plan.validate_every == 0 or step == self.run_plan.steps
        )

    def validate(self, step: int, log: MetricsLog | None, ending: AbstractContextManager[None]) -> None:
        """Validates, logs the metrics, and saves the weights if they are the best so far.

        Args:
            step: number of completed steps.
            log: log of the metrics; None on ranks that write nothing.
            ending: context in which a request to stop may end the process. Averaged weights are not swapped into or out of the
                model in it.
        """
        assert self.task.selection_metric is not None
        with self.trained.average.in_model():
            with self.trained.parallel.full_model(), ending:
                metrics = self.task.validate()
            self.due = False  # until here, a process that ends repeats the validation when it resumes
            self._record(step, metrics, log)

    def _record(self, step: int, metrics: dict[str, float], log: MetricsLog | None) -> None:
        """Logs the metrics of a validation pass, which are equal on all ranks, and saves the weights if they are the best."""
        assert self.task.selection_metric is not None
        value = metrics[self.task.selection_metric]
        higher = not math.isnan(value) and (self.best is None or value > self.best)
        # Ranks must agree, or they would wait for each other in the next line.
        is_best = distributed.gather_objects(higher)[0]
        weights = self.trained.parallel.copied_to_rank_0(dict(self.task.model.state_dict())) if is_best else None
        saved = False
        if log is not None:
            log.write_validation(step, metrics, self.task.validation_predictions)
            metadata = {**self.task.metadata, **self.trained.metadata}
            saved = weights is not None and save_best(self.folder.best, step, weights, metrics, metadata)
        saved = distributed.gather_objects(saved)[0]  # rank 0 may have failed to write
        before = self.best
        if saved:
            self.best = value
        averaged = self.trained.average.config is not None
        logger.info(
            Validated(
                step=step,
                metric=self.task.selection_metric,
                value=finite_or_none(value),
                best=saved,
                averaged=averaged,
            )
        )
        if saved and before is not None and step == self.run_plan.steps:
            logger.info(StillImproving(step=step, metric=self.task.selection_metric, value=value, before=before))
