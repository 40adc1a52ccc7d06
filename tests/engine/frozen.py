"""Runs with frozen encoders: a toy model with vision, text and fusion parts, and pre-training in one process."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from batches.losses import Losses, Term
from engine.checkpoint import Checkpoint, list_checkpoints
from engine.config import TrainConfig
from engine.run_folder import RunFolder
from engine.trainer import Trainer
from optim.config import OptimConfig
from scheduler import ScheduleConfig
from tasks.config import PretrainConfig
from tasks.pretrain import PretrainTask
from tests.engine.runs import CLOCK_VALUES
from tests.engine.toy import Empty, Line, Points, ToyTask, plan_of
from utils.config import load_config


class Encoders(Line):
    """A linear model after encoders that can be frozen. If ``headless``, only the encoders have parameters."""

    def __init__(self, headless: bool = False) -> None:
        super().__init__()
        self.vision, self.text, self.fusion = (nn.Linear(3, 3) for _ in range(3))
        self.headless = headless
        self.fit.requires_grad_(not headless)

    def set_frozen(self, parts: Any) -> None:
        for part in ("vision", "text", "fusion"):
            self.get_submodule(part).requires_grad_(part not in parts)

    def forward(self, batch: Points) -> Losses:
        states: Tensor = self.fusion(self.vision(batch.x).tanh() + self.text(batch.x).tanh())
        error = (self.fit(states).squeeze(1) - batch.y) * batch.valid
        return {"points/square": Term(error.square().sum(), 1.0), "points/abs": Term(error.abs().sum(), 0.5)}


def toy(
    folder: Path, freeze: dict[str, bool | int], model: Line | None = None, task: Any = None, **options: Any
) -> Trainer:
    """A trainer of :class:`Encoders` on the CPU."""
    task = task or ToyTask()
    task.model = model or Encoders()
    sections = {
        "train": TrainConfig(**{"steps": 6, "precision": "fp32", "log_every": 1, "checkpoint_every": 100, **options}),
        "optim": OptimConfig(lr=0.1, freeze=freeze),
        "schedule": ScheduleConfig(kind="linear"),
    }
    return Trainer(
        task,
        plan_of(task, **sections),
        **sections,
        seed=0,
        folder=RunFolder.open(folder, Empty(), resume=True),
        device=torch.device("cpu"),
    )


SIX_STEPS = ["train.steps=6", "train.checkpoint_every=1", "train.keep_checkpoints=9"]


def pretraining(folder: Path, tiny: list[str], *overrides: str) -> Trainer:
    """A trainer of the demo's pre-training. It resumes from a checkpoint in the folder if there is one."""
    config = load_config("configs/demo/pretrain.yaml", [*tiny, *SIX_STEPS, *overrides], PretrainConfig)
    run = RunFolder.open(folder, config, resume=True)
    checkpoint = run.newest
    task = PretrainTask.build(config, checkpoint)
    sections = {"train": config.train, "optim": config.optim, "schedule": config.schedule, "seed": config.seed}
    return Trainer(task, task.plan, **sections, folder=run, device=torch.device("cpu"), checkpoint=checkpoint)


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def part_of(name: str) -> str:
    return name.partition(".")[0]


def lines(folder: Path) -> list[dict[str, float]]:
    """The lines of `metrics.jsonl` without values that depend on the clock."""
    written = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in CLOCK_VALUES} for line in written]


def checkpoints(folder: Path) -> dict[int, Checkpoint]:
    return {checkpoint.step: checkpoint for checkpoint in list_checkpoints(folder / "checkpoints")}


def as_of_step(step: int, whole: Path, folder: Path) -> Path:
    """A copy of a run in the state in which it had just written the checkpoint of ``step``."""
    shutil.copytree(whole, folder)
    for later, checkpoint in checkpoints(folder).items():
        if later > step:
            shutil.rmtree(checkpoint.folder)
    return folder


def result(folder: Path) -> dict[str, Any]:
    """Everything that a run has written, except values that depend on the clock."""
    last = checkpoints(folder)[6]
    state = last.training_state()
    return {
        "lines": lines(folder),
        "weights": last.model_file.read_bytes(),
        "optimizer": (state["optimizer"], load_file(last.states_folder / "tensors.safetensors")),
        "scaler": state["scaler"],
    }


def same(first: Any, second: Any) -> bool:
    """True if the states are bitwise equal."""
    if isinstance(first, Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    return bool(first == second)
