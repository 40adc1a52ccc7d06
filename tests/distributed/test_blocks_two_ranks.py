"""Pre-training in block order on two gloo ranks, resumed on one: each step reads the same records."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.checkpoint import Checkpoint, list_checkpoints
from engine.run_folder import RunFolder
from engine.trainer import Trainer
from tasks.config import PretrainConfig
from tasks.pretrain import PretrainTask
from tests.conftest import tiny_run
from tests.ranks import on_two_ranks
from utils.config import load_config

ROOT = Path(__file__).parent.parent.parent


class Run:
    """A picklable job that trains on every rank, optionally from a checkpoint, and returns the records of each micro-batch."""

    def __init__(self, folder: Path, overrides: list[str]):
        self.folder, self.overrides = folder, overrides

    def __call__(self, checkpoint: Checkpoint | None = None) -> list[list[str]]:
        config = load_config(ROOT / "configs/demo/pretrain.yaml", self.overrides, PretrainConfig)
        folder = RunFolder.open(self.folder, config, checkpoint is not None)
        task = PretrainTask.build(config)
        loader = task.train_loader()
        inner, read = loader.batches, []

        def batches(consumed: int, count: int) -> Iterator[Any]:
            for batch in inner(consumed, count):
                read.append(list(batch.records))
                yield batch

        loader.batches = batches
        Trainer(
            task,
            task.plan,
            train=config.train,
            optim=config.optim,
            schedule=config.schedule,
            seed=0,
            folder=folder,
            device=torch.device("cpu"),
            checkpoint=checkpoint,
        ).fit()
        return read


@pytest.mark.slow
def test_a_run_on_two_ranks_resumes_on_one_with_the_same_records_per_step(tmp_path, scenes_folder):
    blocks = [f"data.{name}.{value}" for name in ("images", "regions") for value in ("order=blocks", "block_records=3")]
    overrides = [*tiny_run(scenes_folder), *blocks, "train.global_batch=16", "train.steps=5"]
    (tmp_path / "out").mkdir()
    shares = on_two_ranks(Run(tmp_path / "run", overrides), tmp_path / "out")
    steps = [
        sorted(record for share in shares for batch in share[2 * s : 2 * s + 2] for record in batch) for s in range(5)
    ]
    checkpoint = list_checkpoints(tmp_path / "run" / "checkpoints")[0]
    assert checkpoint.step == 3
    resumed = Run(tmp_path / "run", overrides)(checkpoint)
    assert [sorted(record for batch in resumed[4 * s : 4 * s + 4] for record in batch) for s in range(2)] == steps[3:]
    assert steps[3] != steps[4]
