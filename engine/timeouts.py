"""How long ranks wait for each other in a run: long while some ranks may be slow, and short during training steps, so that a rank
that hangs is noticed quickly."""

from __future__ import annotations

from contextlib import AbstractContextManager

from engine.config import TrainConfig
from utils import distributed


class StepTimeout:
    """Sets the timeout of collectives to ``train.step_timeout_min`` once the first steps are done, which can be slow. All ranks
    must call each method.

    Args:
        train: the config section ``train``.
        step: number of completed steps.
    """

    def __init__(self, train: TrainConfig, step: int):
        self.train, self.first_step = train, step

    def slow_steps_follow(self, step: int) -> None:
        """Sets the long timeout, because the steps after ``step`` can be slow again."""
        self.first_step = step
        distributed.set_timeout(self.train.start_timeout_min)

    def finished(self, step: int) -> None:
        """Sets the short timeout if ``step`` was the last of the slow steps."""
        if step == self.first_step + self.train.slow_steps:
            distributed.set_timeout(self.train.step_timeout_min)

    def longer(self) -> AbstractContextManager[None]:
        """Context with the long timeout, because some ranks do more than others."""
        return distributed.longer_timeout(self.train.start_timeout_min)
