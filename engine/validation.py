"""The validations of a run: when they are made, and which weights were the best in them."""

from __future__ import annotations

import logging
import math

from engine.metrics_log import MetricsLog
from engine.run_folder import RunFolder
from engine.run_plan import RunPlan
from engine.saving import save_best
from engine.task import Task
from engine.trained import Trained
from utils import distributed
from utils.events import Validated, finite

logger = logging.getLogger(__name__)


class Validations:
    """Validates a task, and keeps the best weights so far in ``best.safetensors``.

    Args:
        task: whose metric ``selects`` is compared, higher is better; None: it is never validated.
        plan: of the run; there is a validation after the last step.
        trained: the model's weights. The model holds their average, where there is one, while it is validated.
        folder: of the run.
    """

    def __init__(self, task: Task, plan: RunPlan, trained: Trained, folder: RunFolder):
        self.task, self.run, self.trained, self.folder = task, plan, trained, folder
        self.best: float | None = None
        """The highest value of the metric so far."""
        self.due = False
        """Whether the validation after the present step is still to be made."""

    def plan(self, step: int) -> None:
        """Set whether a validation follows ``step``."""
        assert self.run.validate_every is not None
        self.due = self.task.selects is not None and (step % self.run.validate_every == 0 or step == self.run.steps)

    def measure(self) -> dict[str, float]:
        """The metrics of a validation, by all ranks."""
        metrics = self.task.validate()
        self.due = False
        return metrics

    def keep(self, step: int, metrics: dict[str, float], log: MetricsLog | None) -> None:
        """Log the metrics of a validation, and save the weights if they are the best so far (not if they tie).

        ``log``: None on the ranks that write nothing.
        """
        assert self.task.selects is not None
        value = metrics[self.task.selects]
        better = not math.isnan(value) and (self.best is None or value > self.best)
        better = distributed.gather_objects(better)[0]  # ranks must agree, or they would wait for each other below
        weights = self.trained.parallel.gathered(dict(self.task.model.state_dict())) if better else None
        if log is not None:
            log.write_validation(step, metrics, self.task.validated)
            about = {**self.task.about, **self.trained.about}
            better = weights is not None and save_best(self.folder.best, step, weights, metrics, about)
        better = distributed.gather_objects(better)[0]  # rank 0 may be unable to write
        if better:
            self.best = value
        averaged = self.trained.average.config is not None
        logger.info(Validated(step=step, metric=self.task.selects, value=finite(value), best=better, averaged=averaged))
