"""Freezes encoders or their first blocks, for the whole run or for its first steps."""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from utils.config import Config
from utils.errors import UserError

FrozenFor = bool | Annotated[int, Field(ge=1)]
"""How long an encoder is frozen: for the whole run (True), never (False), or for this number of steps at the start of the run."""


PARTS = ("vision", "text", "fusion")


class FeatureCacheConfig(Config):
    """On-disk cache of the outputs of the vision encoder's frozen blocks for each image."""

    folder: str | None = Field(
        None, description="folder of the cache, shared by runs and processes; null: in the user's cache folder"
    )
    gigabytes: float = Field(
        20.0, gt=0, description="maximum size of the folder; least recently used entries are evicted first"
    )


class FreezeConfig(Config):
    """Encoders to freeze. Heads and the answer decoder always train."""

    vision: FrozenFor = Field(
        False,
        description="freeze the vision encoder: true for the whole run, or the number of steps at the start",
    )
    text: FrozenFor = Field(
        False,
        description="freeze the text encoder and its word embeddings: true for the whole run, or the number of "
        "steps at the start",
    )
    fusion: FrozenFor = Field(
        False,
        description="freeze the fusion encoder, through which gradients still flow: true for the whole run, "
        "or the number of steps at the start",
    )

    vision_blocks: int | None = Field(
        None,
        ge=1,
        description="freeze everything in the vision encoder before the block with this index, counted from 0, for "
        "the whole run; the other blocks train, or, if `vision` is a number, train after this many steps",
    )
    cache: FeatureCacheConfig | None = Field(
        None,
        description="cache the outputs of blocks that are frozen for the whole run on disk, so that they are "
        "computed once per image; only for images without random augmentation; null: compute them in each step",
    )

    @field_validator("vision", "text", "fusion", mode="before")
    @classmethod
    def _is_a_switch_or_steps(cls, value: Any) -> Any:
        """Raises one error for any invalid value. Without this validator, pydantic would report one error per type, and would
        accept 0 as false."""
        if isinstance(value, bool) or (isinstance(value, int) and value >= 1):
            return value
        raise ValueError("use true (the whole run), false, or a number of steps, at least 1")

    @model_validator(mode="after")
    def _blocks_are_frozen(self) -> FreezeConfig:
        if self.vision is True and self.vision_blocks is not None:
            raise ValueError("vision is true, which freezes all blocks; remove vision_blocks")
        if self.cache is not None and self.vision is not True and self.vision_blocks is None:
            raise ValueError(
                "cache stores the outputs of frozen blocks, but none are frozen; set vision to true, or set "
                "vision_blocks"
            )
        return self

    @property
    def steps(self) -> dict[str, float]:
        """For each encoder that is frozen at the start, the number of steps for which it is frozen; infinite for the whole
        run."""
        values: dict[str, bool | int] = {part: getattr(self, part) for part in PARTS}
        return {part: math.inf if value is True else value for part, value in values.items() if value}

    def frozen_at(self, step: int) -> tuple[str, ...]:
        """Returns the encoders that are frozen in step ``step``, counted from 0."""
        return tuple(part for part, steps in self.steps.items() if step < steps)

    def trains_from(self, name: str) -> float:
        """Returns the first step, counted from 0, in which the parameter ``name`` trains, or infinity if it never trains. Ignores
        ``vision_blocks``, since the model freezes these blocks."""
        return self.steps.get(name.partition(".")[0], 0)

    def at_end(self) -> FreezeConfig:
        """Returns a config that freezes only the encoders that are frozen for the whole run."""
        return FreezeConfig(**dict.fromkeys(self.always_frozen, True))

    @property
    def always_frozen(self) -> tuple[str, ...]:
        """Encoders that are frozen for the whole run."""
        return tuple(part for part, steps in self.steps.items() if math.isinf(steps))

    @property
    def unfrozen_after(self) -> dict[str, int]:
        """For each encoder that is unfrozen during the run, the number of steps for which it is frozen."""
        return {part: int(steps) for part, steps in self.steps.items() if not math.isinf(steps)}

    def check_steps(self, total: int) -> None:
        """Checks that encoders that are frozen for a number of steps are unfrozen before the run ends after ``total`` steps.

        Raises:
            UserError: if such an encoder would stay frozen for the whole run.
        """
        for part, steps in self.unfrozen_after.items():
            if total <= steps:
                raise UserError(
                    f"optim.freeze.{part} is {steps}, but the run has only {total} steps and would never train this "
                    "part; lower it, or set it to true"
                )
