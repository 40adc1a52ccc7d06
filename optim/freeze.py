"""Encoders that do not train: in the whole run, or in its first steps."""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import Field, field_validator

from utils.config import Config
from utils.errors import UserError

FrozenFor = bool | Annotated[int, Field(ge=1)]
"""True: the whole run; false: no step; a number: so many first steps."""


class FreezeConfig(Config):
    """Encoders that do not train; heads and an answer decoder always do."""

    vision: FrozenFor = Field(
        False, description="freeze the vision encoder: true: for the whole run; a number: for so many first steps"
    )
    text: FrozenFor = Field(
        False,
        description="freeze the text encoder and its word table: true: for the whole run; a number: for so many steps",
    )
    fusion: FrozenFor = Field(
        False,
        description="freeze the fusion encoder, through which gradients still pass: true: for the whole run; a number: for "
        "so many first steps",
    )

    @field_validator("*", mode="before")
    @classmethod
    def _is_a_switch_or_steps(cls, value: Any) -> Any:
        """One error, where pydantic would give one for each type, and take 0 for false."""
        if isinstance(value, bool) or (isinstance(value, int) and value >= 1):
            return value
        raise ValueError("give true (the whole run), false, or a number of first steps, at least 1")

    @property
    def steps(self) -> dict[str, float]:
        """The number of first steps in which each part that is named is frozen; infinite: in all."""
        values = {part: getattr(self, part) for part in type(self).model_fields}
        return {part: math.inf if value is True else value for part, value in values.items() if value}

    def frozen_at(self, step: int) -> tuple[str, ...]:
        """The parts that are frozen in step ``step``, from 0."""
        return tuple(part for part, steps in self.steps.items() if step < steps)

    def trains_from(self, name: str) -> float:
        """The first step, from 0, in which the parameter ``name`` trains; infinite: none."""
        return self.steps.get(name.partition(".")[0], 0)

    def at_end(self) -> FreezeConfig:
        """The parts that are frozen in the whole run, without those that are for some steps."""
        return FreezeConfig(**dict.fromkeys(self.frozen_for_good, True))

    @property
    def frozen_for_good(self) -> tuple[str, ...]:
        """The parts that are frozen in the whole run."""
        return tuple(part for part, steps in self.steps.items() if math.isinf(steps))

    @property
    def thawed(self) -> dict[str, int]:
        """The parts that are frozen for some steps, with their number."""
        return {part: int(steps) for part, steps in self.steps.items() if not math.isinf(steps)}

    def check_steps(self, total: int) -> None:
        """Compare with the steps of the run.

        Raises:
            UserError: if a part would be frozen for all of them, although a number of steps is given.
        """
        for part, steps in self.thawed.items():
            if total <= steps:
                raise UserError(
                    f"optim.freeze.{part} is {steps}, but the run has {total} steps and would never train it; lower it, or give "
                    "true"
                )
