"""Cost of hard negative texts in a pre-training step: ``python -m benchmarks.hard_negatives``."""

from __future__ import annotations

import statistics
import sys
from dataclasses import replace
from functools import partial

import torch

from batches.pretraining import PretrainBatch
from benchmarks.pretrain_step import STREAMS, build, seconds
from benchmarks.synthetic import pretrain_batch
from dataset.config import HardNegativesConfig
from engine.config import TrainConfig
from engine.steps import trainer_of
from models.pretraining.model import PretrainModel
from optim.config import OptimConfig
from utils.commands import call
from utils.flags import Positive


def with_hard_negatives(model: PretrainModel, batch: PretrainBatch, count: int) -> PretrainBatch:
    """Returns the batch with ``count`` hard negatives for each text, of the same lengths as the texts."""
    config = {"hard_negatives": HardNegativesConfig(count=count)}
    streams = {name: stream.model_copy(update=config) for name, stream in STREAMS.streams().items()}
    made = pretrain_batch(STREAMS.model_copy(update=streams), model.vision, len(model.text.word_embeddings)).streams()
    parts = {name: replace(part, hard_negatives=made[name].hard_negatives) for name, part in batch.streams().items()}
    return replace(batch, **parts)


def main(*, rounds: Positive = 9, count: Positive = 1, small: bool = False) -> int:
    """Cost of hard negative texts in a pre-training step.

    The step is engine.trainer.Trainer.train_step of the base model at 224 px in float32, on 8 image-text pairs and 12 regions of
    4 images. Steps with and without hard negatives alternate in one process.

    The last line is the median ratio of the times: with hard negatives over without.

    Args:
        rounds: number of measurements of each.
        count: number of hard negatives per text.
        small: smoke test with a small model.

    Examples:
        python -m benchmarks.hard_negatives
    """
    torch.manual_seed(0)
    model, batch = build(small)
    batches = {"without": batch, "with": with_hard_negatives(model, batch, count)}
    trainer = trainer_of(
        model, TrainConfig(steps=1, precision="fp32"), OptimConfig(lr=1e-4), device=torch.device("cpu")
    )
    runs = {name: partial(trainer.train_step, [each]) for name, each in batches.items()}
    for run in runs.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            times[name].append(seconds(run))
    flops = [model.work(each).flops for each in batches.values()]
    ratios = [one / other for one, other in zip(times["with"], times["without"], strict=True)]
    sys.stdout.write(f"FLOPs with over without: {flops[1] / flops[0]:.3f}\n")
    sys.stdout.write(f"ratios: {', '.join(f'{ratio:.3f}' for ratio in ratios)}\n")
    sys.stdout.write(f"ratio: {statistics.median(ratios):.3f}\n")
    return 0


if __name__ == "__main__":
    sys.exit(call(main, sys.argv[1:], "python -m benchmarks.hard_negatives"))
