"""The config section ``train``: length, batch, precision and bookkeeping of training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from utils.config import MAY_CHANGE, Config
from utils.processes import GRACE_S, TIMEOUT_MIN

PrecisionName = Literal["bf16", "fp16", "fp32", "O0", "O1", "O2"]


Encoder = Literal["vision", "text", "fusion"]


COMPILE_STEPS = 8
"""Number of steps in which compiled encoders may still compile new shapes."""


class WandbConfig(Config):
    """Where a run is shown at Weights & Biases."""

    project: str = Field("x2vlm", min_length=1, description="project at W&B")
    entity: str | None = Field(None, description="user or team at W&B; null: the logged-in user")
    name: str | None = Field(None, description="name of the run at W&B; null: name of its folder")
    group: str | None = Field(None, description="group of runs at W&B")
    mode: Literal["online", "offline"] = Field(
        "online", description="offline: write to the run's folder, for `wandb sync`"
    )
    images: bool = Field(True, description="also send figures of predictions, which contain held-out images")


class ShardingConfig(Config):
    """Groups of ranks that share one copy of the model (HSDP), such as the GPUs of a machine."""

    shard: int = Field(ge=1, description="number of ranks that share a copy of the model")
    replicate: int = Field(ge=1, description="number of copies; shard x replicate is the number of ranks")


class TrainConfig(Config):
    """Length, batch, precision and bookkeeping of training.

    ``accumulate`` and ``global_batch`` may change when a run is resumed, provided that the number of records per step stays the
    same (:mod:`engine.identity`).
    """

    steps: int | None = Field(None, ge=1, description="number of optimiser steps; null: determined by epochs")
    epochs: float | None = Field(
        None, gt=0, description="number of passes over the leading stream of training data; null: determined by steps"
    )
    global_batch: Annotated[int | None, MAY_CHANGE] = Field(
        None,
        ge=1,
        description="examples of the leading stream per step over all ranks, from which the accumulation is "
        "computed; null: micro-batch x ranks x accumulate",
    )
    accumulate: Annotated[int | None, MAY_CHANGE] = Field(
        None, ge=1, description="micro-batches per step and rank, if global_batch is not set; null: 1"
    )
    precision: PrecisionName = Field(
        "bf16", description="precision of the forward pass; O0 is fp32, O1 and O2 are fp16 (apex's names)"
    )
    clip_grad_norm: float | None = Field(1.0, gt=0, description="maximum norm of the gradient; null: no clipping")
    log_every: Annotated[int, MAY_CHANGE] = Field(50, ge=1, description="steps between lines of metrics.jsonl")
    checkpoint_every: Annotated[int, MAY_CHANGE] = Field(1000, ge=1, description="steps between checkpoints")
    validate_every: int | None = Field(
        None,
        ge=1,
        description="steps between validation passes; the last step is always followed by one; null: one per epoch",
    )
    keep_checkpoints: Annotated[int, MAY_CHANGE] = Field(
        3, ge=1, description="number of most recent checkpoints to keep"
    )
    max_skipped_steps: Annotated[int, MAY_CHANGE] = Field(
        0,
        ge=0,
        description="maximum number of steps that may be skipped because a loss or gradient is not finite; one more "
        "stops the run",
    )
    start_timeout_min: Annotated[float, MAY_CHANGE] = Field(
        TIMEOUT_MIN,
        gt=0,
        description="minutes that ranks wait for each other at the start and during validation and evaluation",
    )
    step_timeout_min: Annotated[float, MAY_CHANGE] = Field(
        15.0, gt=0, description="minutes that ranks wait for each other during a training step"
    )
    stall_s: Annotated[float, MAY_CHANGE] = Field(
        300.0, gt=0, description="seconds without a finished step after which a rank reports where it hangs"
    )
    grace_s: Annotated[int, MAY_CHANGE] = Field(
        GRACE_S, ge=1, description="seconds that ranks have to save a checkpoint after a signal, before they are killed"
    )
    peak_tflops: Annotated[float | None, MAY_CHANGE] = Field(
        None,
        gt=0,
        description="dense peak TFLOP/s of a device in this precision, to compute the utilisation; null: taken "
        "from the table of known GPUs",
    )
    parallel: Annotated[Literal["auto", "ddp", "fsdp"] | ShardingConfig, MAY_CHANGE] = Field(
        "auto",
        description="how ranks share the model. ddp: each rank holds the whole model; fsdp: each rank holds a shard "
        "of the weights, gradients and optimiser states (FSDP2); a section with `shard` and `replicate`: each group of "
        "`shard` ranks shares a copy (HSDP); auto: fsdp if the states would take more than half of a GPU's memory",
    )
    recompute: Annotated[list[Encoder], MAY_CHANGE] = Field(
        [],
        description="encoders that use gradient checkpointing: activations are recomputed in the backward pass, "
        "which takes less memory and more time",
    )
    compile: bool | Literal["reduce-overhead", "max-autotune"] = Field(
        False,
        description="compile the encoders: true, or a mode of torch.compile; pre-training batches then have only "
        "a few shapes",
    )
    wandb: Annotated[WandbConfig | None, MAY_CHANGE] = Field(
        None, description="also show the run at Weights & Biases; null: only in TensorBoard"
    )
    deterministic: bool = Field(
        False,
        description="use torch's deterministic algorithms, so that a resumed run is bitwise equal to an "
        "uninterrupted one",
    )

    @model_validator(mode="after")
    def _has_one_length(self) -> TrainConfig:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("set either steps or epochs, and the other one to null")
        return self

    @model_validator(mode="before")
    @classmethod
    def _default_accumulation(cls, values: Any) -> Any:
        """Sets the default of ``accumulate`` explicitly, as earlier versions did in saved configs, so that their runs can be
        resumed."""
        if not isinstance(values, Mapping) or values.get("global_batch") is not None or "accumulate" in values:
            return values
        return {**values, "accumulate": 1}

    @model_validator(mode="after")
    def _has_one_accumulation(self) -> TrainConfig:
        if self.global_batch is not None and self.accumulate is not None:
            raise ValueError(
                f"accumulate = {self.accumulate} and global_batch = {self.global_batch} are mutually exclusive: "
                "accumulation is derived from the global batch; set one of them to null"
            )
        return self

    @model_validator(mode="after")
    def _graphs_do_not_accumulate(self) -> TrainConfig:
        if self.captures_graphs and self.accumulate is not None and self.accumulate > 1:
            raise ValueError(
                f"compile: {self.compile} captures CUDA graphs, which may overwrite gradients before they are "
                f"accumulated; with accumulate = {self.accumulate}, set compile to true"
            )
        return self

    @model_validator(mode="after")
    def _can_be_sharded(self) -> TrainConfig:
        if self.parallel not in ("auto", "ddp") and (setting := self.setting_without_fsdp):
            raise ValueError(f"parallel: FSDP2 does not work with {setting}; change it, or set parallel to ddp")
        return self

    @property
    def setting_without_fsdp(self) -> str | None:
        """A setting of this config that does not work with FSDP2, or None if there is none."""
        if self.compile:
            return "compile"
        return f"precision = {self.precision}" if self.precision in ("fp16", "O1", "O2") else None

    @property
    def slow_steps(self) -> int:
        """Number of steps that can be slow after the start and after an encoder is unfrozen."""
        return COMPILE_STEPS if self.compile else 1

    @property
    def captures_graphs(self) -> bool:
        """True if ``train.compile`` captures CUDA graphs."""
        return isinstance(self.compile, str)
