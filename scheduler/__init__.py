"""Learning-rate schedules: pure functions that return the factor on the learning rate in each step."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

from pydantic import Field, model_validator

from utils.config import Config
from utils.errors import UserError

Schedule = Callable[[int], float]


class ScheduleConfig(Config):
    """The factor on the learning rate, which rises from 0 to 1 in the warm-up and then decays."""

    kind: Literal["linear", "cosine", "constant"] = Field("linear", description="shape of the decay after the warm-up")
    warmup_steps: float = Field(
        0, ge=0, description="length of the warm-up in steps; below 1: as a fraction of all steps"
    )
    min_rate: float = Field(0.0, ge=0, lt=1, description="lower bound of the factor in the decay")

    @model_validator(mode="after")
    def _decays(self) -> ScheduleConfig:
        if self.kind == "constant" and self.min_rate:
            raise ValueError(
                f"min_rate is {self.min_rate:g}, but a constant schedule does not decay; remove it, or choose another "
                "kind"
            )
        return self


def build_schedule(config: ScheduleConfig, total_steps: int) -> Schedule:
    """Returns a function that maps a step, counted from 0, to the factor on the learning rate.

    ``linear`` is the schedule of the authors' code: the factor is 0 at step 0 and 1 at the end of the warm-up. With ``min_rate``
    and a number of warm-up steps that is not an integer, the peak is slightly above 1, as in the authors' code.

    Raises:
        UserError: if the warm-up is longer than the run.
    """
    warmup = config.warmup_steps if config.warmup_steps >= 1 else int(config.warmup_steps * total_steps)
    if warmup > total_steps:
        raise UserError(
            f"schedule.warmup_steps is {warmup:g}, but the run has {total_steps} steps and would never reach its "
            "learning rate",
            remedy="lower it, or use a fraction of the steps, such as 0.1",
        )
    return lambda step: (
        step / warmup if step < warmup else DECAYS[config.kind](step, warmup, total_steps, config.min_rate)
    )


def _linear(step: int, warmup: float, total: int, min_rate: float) -> float:
    return max(min_rate, (total - (1 - min_rate) * step) / max(1, total - warmup))


def _cosine(step: int, warmup: float, total: int, min_rate: float) -> float:
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return min_rate + (1 - min_rate) * (1 + math.cos(math.pi * progress)) / 2


def _constant(step: int, warmup: float, total: int, min_rate: float) -> float:
    return 1.0


DECAYS = {"linear": _linear, "cosine": _cosine, "constant": _constant}
