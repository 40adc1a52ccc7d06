"""A task without X²-VLM: a line fitted to noisy points, with two kinds of losses and uneven counts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from batches import BatchSize
from batches.losses import Losses, Term, Work
from engine.checkpoint import Checkpoint
from engine.config import TrainConfig
from engine.run_folder import RunFolder
from engine.run_plan import RunPlan
from engine.trainer import Trainer
from optim.config import OptimConfig
from scheduler import ScheduleConfig
from utils import distributed
from utils.config import Config


@dataclass(frozen=True)
class Points:
    x: Tensor
    y: Tensor
    valid: Tensor
    records: tuple[str, ...]


class Line(nn.Module):
    chunks = 1

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fit = nn.Linear(3, 1)

    def forward(self, batch: Points) -> Losses:
        error = (self.fit(batch.x).squeeze(1) - batch.y) * batch.valid
        return {"points/square": Term(error.square().sum(), 1.0), "points/abs": Term(error.abs().sum(), 0.5)}

    def counts(self, batch: Points) -> dict[str, Tensor]:
        return {"points/square": batch.valid.sum(), "points/abs": batch.valid.sum()}

    def work(self, batch: Points) -> Work:
        rows = int(batch.valid.sum())
        return Work(rows, 0, 3 * rows, 2e9 * rows)


def points(number: int, rows: int = 4) -> Points:
    generator = torch.Generator().manual_seed(number)
    x = torch.randn(rows, 3, generator=generator)
    valid = torch.arange(rows) <= number % rows
    return Points(x, x.sum(dim=1), valid, tuple(f"points:{number}:{row}" for row in range(rows)))


class ToyLoader:
    examples_per_batch = 4
    micro_batch = BatchSize("data.batch_size", 4)
    records_per_batch = 4
    epoch_size = 10

    def __init__(self, poison: set[int]):
        self.poison = poison
        self.stream_sizes = {"points": 10}

    def check_ranks(self, ranks: int) -> None:
        """Accepts any number of ranks."""

    def batches(self, consumed: int, count: int) -> Iterator[Points]:
        for number in range(consumed, consumed + count):
            batch = points(number)
            if number in self.poison:
                batch = Points(batch.x, torch.full_like(batch.y, torch.nan), batch.valid, batch.records)
            yield batch


class ToyTask:
    """``scores`` are the results of successive validation passes; if None, the task has no validation."""

    validation_predictions = ()

    def __init__(self, poison: set[int] | None = None, scores: list[float] | None = None):
        self.scores = scores
        self.selection_metric = None if scores is None else "score"
        self.model = Line()
        self.fresh: set[str] = set()
        self.metadata: dict[str, str] = {}
        self.loader = ToyLoader(poison or set())

    def train_loader(self) -> ToyLoader:
        return self.loader

    def validate(self) -> dict[str, float]:
        assert self.scores is not None
        return {"score": self.scores.pop(0)}


class Empty(Config):
    pass


def trainer(
    folder: Path,
    task: ToyTask | None = None,
    checkpoint: Checkpoint | None = None,
    device: str | torch.device = "cpu",
    **options,
) -> Trainer:
    task = task or ToyTask()
    settings = {"steps": 6, "precision": "fp32", "log_every": 1, "checkpoint_every": 100} | options
    sections = {
        "train": TrainConfig(**settings),
        "optim": OptimConfig(lr=0.1),
        "schedule": ScheduleConfig(kind="constant"),
    }
    return Trainer(
        task,
        plan_of(task, **sections),
        **sections,
        seed=0,
        folder=RunFolder.open(folder, Empty(), resume=True),
        device=torch.device(device),
        checkpoint=checkpoint,
    )


def plan_of(task: Any, train: TrainConfig, optim: OptimConfig, schedule: ScheduleConfig) -> RunPlan:
    """The plan of a run of a task without a config."""
    loader = task.train_loader()
    plan = RunPlan.of(train, loader, chunks=task.model.chunks, ranks=distributed.world_size())
    return plan.with_length(train, optim, schedule, loader.epoch_size)
