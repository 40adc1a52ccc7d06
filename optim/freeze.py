"""Encoders that do not train, or their first blocks: in the whole run, or in its first steps."""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from utils.config import Config
from utils.errors import UserError

FrozenFor = bool | Annotated[int, Field(ge=1)]
"""True: the whole run; false: no step; a number: so many first steps."""


PARTS = ("vision", "text", "fusion")


class FeatureCacheConfig(Config):
    """States of the vision encoder's frozen blocks, kept on disk for each image."""

    folder: str | None = Field(
        None, description="folder of the states, which runs and processes share; null: in the user's cache folder"
    )
    gigabytes: float = Field(20.0, gt=0, description="most that the folder holds; what was used longest ago goes first")


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

    vision_blocks: int | None = Field(
        None,
        ge=1,
        description="freeze all of the vision encoder that comes before its block of this number, counted from 0, for the whole "
        "run; the others train, or with `vision` a number, do so after as many steps",
    )
    cache: FeatureCacheConfig | None = Field(
        None,
        description="keep the states of blocks that are frozen for the whole run on disk, so that each image goes through them "
        "once; for images that are not augmented anew; null: compute them in each step",
    )

    @field_validator("vision", "text", "fusion", mode="before")
    @classmethod
    def _is_a_switch_or_steps(cls, value: Any) -> Any:
        """One error, where pydantic would give one for each type, and take 0 for false."""
        if isinstance(value, bool) or (isinstance(value, int) and value >= 1):
            return value
        raise ValueError("give true (the whole run), false, or a number of first steps, at least 1")

    @model_validator(mode="after")
    def _blocks_are_frozen(self) -> FreezeConfig:
        if self.vision is True and self.vision_blocks is not None:
            raise ValueError("vision is true, which freezes all of its blocks; leave vision_blocks out")
        if self.cache is not None and self.vision is not True and self.vision_blocks is None:
            raise ValueError("cache keeps what frozen blocks compute; set vision to true, or vision_blocks")
        return self

    @property
    def steps(self) -> dict[str, float]:
        """The number of first steps in which each part that is named is frozen; infinite: in all."""
        values: dict[str, bool | int] = {part: getattr(self, part) for part in PARTS}
        return {part: math.inf if value is True else value for part, value in values.items() if value}

    def frozen_at(self, step: int) -> tuple[str, ...]:
        """The parts that are frozen in step ``step``, from 0."""
        return tuple(part for part, steps in self.steps.items() if step < steps)

    def trains_from(self, name: str) -> float:
        """The first step, from 0, in which the parameter ``name`` trains; infinite: none. Blocks of ``vision_blocks`` are frozen
        in the model itself."""
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
