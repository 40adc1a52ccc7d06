"""The config section ``optim``: learning rates, AdamW, frozen encoders, adapters and averaged weights."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, field_validator, model_validator

from utils.config import Config
from utils.errors import UserError

FrozenFor = bool | Annotated[int, Field(ge=1)]
"""How long an encoder is frozen: for the whole run (True), never (False), or for this number of steps at the start of the run."""


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
        values: dict[str, bool | int] = {part: getattr(self, part) for part in ("vision", "text", "fusion")}
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
                    f"optim.freeze.{part} is {steps}, but the run has only {total} steps and would never train this part",
                    remedy="lower it, or set it to true",
                )


HEADER = "lora"
"""Entry in the header of a weight file that contains the config of its adapters."""


Part = Literal["vision", "text", "fusion", "decoder"]


PARTS: tuple[Part, ...] = get_args(Part)


class LoraConfig(Config):
    """Low-rank adapters that train instead of the weights of encoders."""

    rank: int = Field(ge=1, description="rank of the adapters: the number of rows of A and of columns of B")
    alpha: int = Field(16, ge=1, description="B A is multiplied by alpha / rank")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout on the input of A")
    targets: list[Part] | None = Field(
        None,
        description="parts that get adapters and whose own weights stay fixed: vision, text, fusion, decoder (an "
        "answer decoder); null: all parts of the model that optim.freeze does not freeze",
    )
    layers: Literal["attention", "all"] = Field(
        "all",
        description="linear layers that get adapters: attention (queries, keys, values, output) or all in a block",
    )
    lr: float | None = Field(None, gt=0, description="peak learning rate of the adapters; null: optim.lr")

    @field_validator("targets")
    @classmethod
    def _names_parts_once(cls, value: list[Part] | None) -> list[Part] | None:
        if value is not None and (not value or len(set(value)) < len(value)):
            raise ValueError("list each part at most once, and at least one part; omit the key for all parts")
        return value

    @property
    def scaling(self) -> float:
        """The factor by which B A is multiplied."""
        return self.alpha / self.rank

    @property
    def metadata(self) -> dict[str, Any]:
        """Metadata for the header of a weight file that describes its adapters."""
        return {HEADER: self.model_dump()}


class EmaConfig(Config):
    """Exponential moving average of the weights: after each step, average = decay * average + (1 - decay) * weights."""

    decay: float = Field(0.9999, ge=0, lt=1, description="fraction of the average that is kept in each step")
    warmup: bool = Field(True, description="in step t, counted from 0, use the decay (1 + t) / (10 + t) if it is lower")

    def decay_at(self, step: int) -> float:
        """Returns the decay in a step, counted from 0."""
        return min(self.decay, (1 + step) / (10 + step)) if self.warmup else self.decay


Beta = Annotated[float, Field(ge=0, lt=1)]


class MuonConfig(Config):
    """Muon (Jordan et al., 2024) for the matrices in the blocks of all encoders. AdamW trains all other parameters."""

    lr_factor: float = Field(
        1.0,
        gt=0,
        description="factor on the learning rate of these matrices; with 1, their updates are about as large as with AdamW",
    )
    momentum: float = Field(0.95, ge=0, lt=1, description="decay rate of the average of the gradients")


class OptimConfig(Config):
    """Learning rates, constants of AdamW, Muon, freezing, adapters and averaged weights."""

    lr: float = Field(gt=0, description="peak learning rate")
    lr_mult: float = Field(2.0, gt=0, description="factor on lr for parameters that are not loaded from a checkpoint")
    vision_lr: float | None = Field(
        None, gt=0, description="peak learning rate of the vision encoder; null: lr; requires text_lr"
    )
    text_lr: float | None = Field(
        None, gt=0, description="peak learning rate of the text encoder and the word head; null: lr; requires vision_lr"
    )
    cross_lr: float | None = Field(
        None, gt=0, description="peak learning rate of the fusion encoder; null: text_lr, or lr"
    )
    vision_layer_decay: float = Field(
        1.0,
        gt=0,
        le=1,
        description="factor on the learning rate of a vision block for each block above it, and once more for "
        "parameters before the first block, as in fine-tuning of BEiT; 1: the same rate in all blocks",
    )
    weight_decay: float = Field(0.01, ge=0, description="weight decay of all parameters except biases and norms")
    betas: tuple[Beta, Beta] = Field((0.9, 0.98), description="decay rates of AdamW's two moment estimates")
    eps: float = Field(1e-8, gt=0, description="term in AdamW's denominator that prevents division by zero")
    fused: Literal["auto", "apex"] = Field(
        "auto", description="implementation of AdamW: auto (torch's fused one) or apex (NVIDIA's FusedAdam)"
    )
    muon: MuonConfig | None = Field(
        None,
        description="train the matrices in the blocks of the encoders with Muon, which needs fewer steps from scratch; "
        "{} or a section with settings; null: train all parameters with AdamW",
    )
    freeze: FreezeConfig | None = Field(None, description="encoders to freeze; null: freeze none")
    lora: LoraConfig | None = Field(
        None,
        description="train low-rank adapters (LoRA) instead of the weights of encoders; null: train the weights",
    )
    ema: EmaConfig | None = Field(
        None,
        description="keep an exponential moving average of the weights, which is validated, evaluated and saved; "
        "null: no average",
    )

    @property
    def frozen(self) -> FreezeConfig:
        """The section ``freeze``, or its defaults if it is null."""
        return self.freeze or FreezeConfig()

    @model_validator(mode="after")
    def _apex_cannot_unfreeze(self) -> OptimConfig:
        unfrozen = list(self.frozen.unfrozen_after)
        if self.fused == "apex" and unfrozen:
            raise ValueError(
                f"freeze.{unfrozen[0]} is a number of steps, but apex keeps one step count for all parameters, and "
                "parameters that are unfrozen later have fewer steps; set fused to auto, or freeze for the whole run"
            )
        return self

    @model_validator(mode="after")
    def _muon_trains_whole_matrices_with_torch(self) -> OptimConfig:
        if self.muon is not None and self.fused == "apex":
            raise ValueError("fused is apex, which has no Muon; set fused to auto, or muon to null")
        if self.muon is not None and self.lora is not None:
            raise ValueError(
                "muon trains the matrices in blocks, and lora trains adapters instead of them; set one of them to null"
            )
        return self

    @model_validator(mode="after")
    def _frozen_parts_have_no_adapters(self) -> OptimConfig:
        both = [part for part in self.frozen.steps if self.lora and part in (self.lora.targets or ())]
        if both:
            raise ValueError(
                f"lora.targets contains {both[0]}, but freeze.{both[0]} would freeze its adapters; remove one of the "
                "two"
            )
        return self

    @model_validator(mode="after")
    def _rates_come_together(self) -> OptimConfig:
        if (self.vision_lr is None) != (self.text_lr is None):
            raise ValueError("set both vision_lr and text_lr, or neither")
        if self.cross_lr is not None and self.text_lr is None:
            raise ValueError("cross_lr needs vision_lr and text_lr")
        return self
