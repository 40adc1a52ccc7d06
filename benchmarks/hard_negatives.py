"""Cost of hard negative texts in a pre-training step: ``python -m benchmarks.hard_negatives``."""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import partial

import torch

from batches.pretraining import PretrainBatch
from benchmarks.harness import Rounds, print_line, seconds_of
from benchmarks.pretrain_step import STREAMS, build, float32_trainer
from benchmarks.synthetic import pretrain_batch
from dataset.config import HardNegativesConfig
from models.pretraining.model import PretrainModel
from utils.commands import call
from utils.flags import Positive


def with_hard_negatives(model: PretrainModel, batch: PretrainBatch, count: int) -> PretrainBatch:
    """Returns the batch with ``count`` hard negatives for each text, of the same lengths as the texts."""
    config = {"hard_negatives": HardNegativesConfig(count=count)}
    streams = {name: stream.model_copy(update=config) for name, stream in STREAMS.streams().items()}
    made = pretrain_batch(STREAMS.model_copy(update=streams), model.vision, len(model.text.word_embeddings)).by_stream()
    parts = {name: replace(part, hard_negatives=made[name].hard_negatives) for name, part in batch.by_stream().items()}
    return replace(batch, **parts)


def main(*, flags: Rounds = Rounds(), count: Positive = 1, small: bool = False) -> int:
    """Cost of hard negative texts in a pre-training step.

    The step is engine.trainer.Trainer.train_step of the base model at 224 px in float32, on 8 image-text pairs and 12 regions of
    4 images. Steps with and without hard negatives alternate in one process.

    The last line is the median ratio of the times: with hard negatives over without.

    Args:
        count: number of hard negatives per text.
        small: smoke test with a small model.

    Examples:
        python -m benchmarks.hard_negatives
    """
    torch.manual_seed(0)
    model, batch = build(small)
    trainer = float32_trainer(model)
    batches = {"with": with_hard_negatives(model, batch, count), "without": batch}
    steps = {name: partial(trainer.train_step, [each]) for name, each in batches.items()}
    compared = flags.compare({name: partial(seconds_of, step) for name, step in steps.items()})
    flops = model.work(batches["with"]).flops / model.work(batches["without"]).flops
    print_line(f"FLOPs with over without: {flops:.3f}")
    return flags.conclude(compared.ratio, compared.rounds, digits=3, flops=flops)


if __name__ == "__main__":
    sys.exit(call(main, sys.argv[1:], "python -m benchmarks.hard_negatives"))
