"""Single training steps without a run: no data, no folder and no checkpoints, for measurements and for code outside a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import torch
from torch import nn

from batches import BatchSize
from engine.config import TrainConfig
from engine.run_folder import RunFolder
from engine.run_plan import RunPlan
from engine.task import TaskModel
from engine.trainer import Trainer
from optim.config import OptimConfig
from scheduler import ScheduleConfig
from utils import distributed


def chunks_of(model: nn.Module) -> int:
    """Returns the number of micro-batches that a loss spans. If it spans all micro-batches of a step, returns 2, because memory
    hardly depends on the number."""
    chunks = cast(TaskModel, model).chunks
    return 2 if chunks == "step" else chunks


def trainer_of(model: nn.Module, train: TrainConfig, optim: OptimConfig, device: torch.device) -> Trainer:
    """Returns a trainer without data, for single steps on the caller's batches. Only those parts are frozen that ``optim.freeze``
    freezes for the whole run."""
    single_step: dict[str, Any] = {"steps": 1, "epochs": None, "deterministic": False, "global_batch": None}
    single_step["accumulate"] = chunks_of(model)
    if not distributed.is_distributed():
        single_step["parallel"] = "ddp"
    train = train.model_copy(update=single_step)
    optim = optim.model_copy(update={"freeze": optim.frozen.at_end()})
    if device.type == "cpu":
        optim = optim.model_copy(update={"fused": "auto"})
    task, schedule = NoData(model), ScheduleConfig(kind="constant")
    plan = RunPlan.of(train, task, chunks=cast(TaskModel, model).chunks, ranks=distributed.world_size())
    return Trainer(
        task,
        plan.with_length(train, optim, schedule, task.epoch_size),
        train=train,
        optim=optim,
        schedule=schedule,
        seed=0,
        folder=RunFolder(Path()),
        device=device,
    )


class NoData:
    """A task without data. It is also an empty loader."""

    selection_metric: str | None = None
    validation_predictions: Sequence[Mapping[str, Any]] = ()
    metadata: Mapping[str, Any] = MappingProxyType({})
    examples_per_batch = records_per_batch = epoch_size = 1
    micro_batch = BatchSize("the micro-batch", 1)

    def __init__(self, model: nn.Module):
        self.stream_sizes = {"examples": 1}
        self.model = model
        self.fresh: set[str] = set()

    def train_loader(self) -> NoData:
        return self

    def check_ranks(self, ranks: int) -> None:
        """Accepts any number of ranks."""

    def batches(self, consumed: int, count: int) -> Iterator[Any]:
        return iter(())

    def validate(self) -> dict[str, float]:
        return {}
