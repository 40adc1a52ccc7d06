"""How long and how exactly to train: the keys below ``train``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from engine.global_batch import accumulation
from engine.precision import PrecisionName
from engine.task import Encoder, Loader, SizesMicroBatch
from utils import distributed
from utils.config import Config


class TrainConfig(Config):
    """How long and how exactly to train."""

    steps: int | None = Field(None, ge=1, description="optimiser steps; or give epochs")
    epochs: float | None = Field(None, gt=0, description="passes over the leading stream; or give steps")
    global_batch: int | None = Field(
        None,
        ge=1,
        description="examples of the leading stream per step over all ranks, from which accumulation is derived; null: as many "
        "as micro-batch, ranks and accumulate make",
    )
    accumulate: int | None = Field(
        None, ge=1, description="micro-batches per step and rank (null: 1), where no global_batch is given"
    )
    precision: PrecisionName = "bf16"
    clip_grad_norm: float | None = Field(1.0, gt=0)
    log_every: int = Field(50, ge=1, description="steps between lines of metrics.jsonl")
    checkpoint_every: int = Field(1000, ge=1)
    validate_every: int | None = Field(
        None, ge=1, description="steps between validations, and always after the last; null: once an epoch"
    )
    keep_checkpoints: int = Field(3, ge=1)
    max_skipped_steps: int = Field(
        0, ge=0, description="steps with a non-finite loss that may be left out before the run stops"
    )
    peak_tflops: float | None = Field(
        None, gt=0, description="a device's dense peak in this precision, for the utilisation; null: that of known GPUs"
    )
    recompute: list[Encoder] = Field(
        [],
        description="encoders whose activations are not kept but computed anew in the backward pass: less memory, more time",
    )
    compile: bool | Literal["reduce-overhead", "max-autotune"] = Field(
        False, description="torch.compile of the encoders, in this mode; pre-training then makes batches of few shapes"
    )
    deterministic: bool = Field(
        False, description="torch's deterministic algorithms: a resumed run repeats to the last digit"
    )

    @model_validator(mode="after")
    def _says_how_long(self) -> TrainConfig:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give either steps or epochs")
        return self

    @model_validator(mode="before")
    @classmethod
    def _accumulates_once(cls, values: Any) -> Any:
        """Write out the default, as configs saved by earlier versions do, so that their runs can be resumed."""
        if not isinstance(values, Mapping) or values.get("global_batch") is not None or "accumulate" in values:
            return values
        return {**values, "accumulate": 1}

    @model_validator(mode="after")
    def _accumulates_in_one_way(self) -> TrainConfig:
        if self.global_batch is not None and self.accumulate is not None:
            raise ValueError(
                f"accumulate = {self.accumulate} and global_batch = {self.global_batch} exclude each other: accumulation is "
                "derived from the global batch; set one of them to null"
            )
        return self

    @model_validator(mode="after")
    def _keeps_gradients(self) -> TrainConfig:
        if self.records_graphs and self.accumulate is not None and self.accumulate > 1:
            raise ValueError(
                f"compile: {self.compile} records graphs, whose next run may write over gradients that are still added to; with "
                f"accumulate = {self.accumulate}, give compile: true"
            )
        return self

    @property
    def records_graphs(self) -> bool:
        """Whether the compiler records CUDA graphs."""
        return isinstance(self.compile, str)

    def accumulation(self, data: SizesMicroBatch, ranks: int | None = None) -> int:
        """Micro-batches per step and rank, on ``ranks`` (None: those of this run).

        Raises:
            UserError: if the micro-batches of all ranks do not make ``global_batch``.
        """
        if self.global_batch is None:
            return self.accumulate or 1
        graphs = self.compile if isinstance(self.compile, str) else None
        return accumulation(self.global_batch, data.micro_batch, ranks or distributed.world_size(), graphs=graphs)

    def total_steps(self, loader: Loader) -> int:
        """Optimiser steps of the run; a part of a step counts as one."""
        if self.steps is not None:
            return self.steps
        return self.steps_of(loader.epoch_size, self.records_per_step(loader))

    def steps_of(self, epoch_size: int, per_step: int) -> int:
        """Those of the epochs, from the records of the leading stream in an epoch and in a step."""
        assert self.epochs is not None
        steps = self.epochs * epoch_size / per_step
        return max(1, math.ceil(round(steps, 6)))  # in binary, 7 hundredths of 100 are a little more than 7

    def records_per_step(self, loader: Loader) -> int:
        """Records of the leading stream that a step takes, over all ranks."""
        return loader.records_per_batch * self.accumulation(loader) * distributed.world_size()
