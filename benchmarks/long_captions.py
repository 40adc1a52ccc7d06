"""Cost of long captions in a pre-training step: ``python -m benchmarks.long_captions``."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch

from batches.pretraining import PretrainBatch
from benchmarks.plain_path import Padding, plain_losses
from benchmarks.pretrain_step import build, seconds
from benchmarks.synthetic import TextWriter, pretrain_batch
from dataset.config import DataConfig, ImageStreamConfig, TextDataConfig
from engine.config import TrainConfig
from engine.steps import trainer_of
from models.pretraining.model import PretrainModel
from optim.config import OptimConfig
from utils.commands import call
from utils.flags import Positive

PAIRS, LONG_PAIRS = 10, 2
LONG, RELEASED = 200, 40
"""Tokens in a long caption, and the length to which the released configs pad short captions."""
PADDED = {"short": Padding(RELEASED, RELEASED), "long": Padding(LONG, LONG)}


def batch_of(model: PretrainModel, long: int) -> PretrainBatch:
    """Returns a batch of pairs in which ``long`` pairs have a long caption. The other captions have 13 tokens on average."""
    limits = TextDataConfig(max_tokens=LONG)
    data = DataConfig(images=ImageStreamConfig(files=[], batch_size=PAIRS), text=limits)
    vocabulary = len(model.text.word_embeddings)
    batch = pretrain_batch(data, model.vision, vocabulary)
    assert batch.images is not None
    writer = TextWriter(vocabulary, torch.Generator().manual_seed(1), 1.0, static=False)
    texts = writer.token_lists("images", PAIRS, TextDataConfig())
    texts[:long] = [writer.token_list(LONG) for _ in range(long)]
    return replace(batch, images=replace(batch.images, text=writer.masked(texts, limits)))


def main(*, rounds: Positive = 9, small: bool = False) -> int:
    """Cost of long captions in a pre-training step.

    The step is engine.trainer.Trainer.train_step of the base model at 224 px in float32, on 10 pairs. In the long batch, 2
    captions have 200 tokens; all other captions have 13 on average. The padded path computes the same losses, forward and
    backward, with all texts padded to 40 tokens in the short batch and to 200 in the long batch. All four combinations alternate
    in one process.

    The last line is the ratio of the times, long over short, divided by the ratio of FLOPs as counted by run.py plan.

    Args:
        rounds: number of measurements of each.
        small: smoke test with a small model.

    Examples:
        python -m benchmarks.long_captions
    """
    torch.manual_seed(0)
    model, _ = build(small)
    batches = {"short": batch_of(model, 0), "long": batch_of(model, LONG_PAIRS)}
    trainer = trainer_of(
        model, TrainConfig(steps=1, precision="fp32"), OptimConfig(lr=1e-4), device=torch.device("cpu")
    )

    def padded(name: str) -> None:
        model.zero_grad()
        losses = plain_losses(model, batches[name], PADDED[name])
        counts = model.counts(batches[name])
        total = sum(term.weight * term.total / counts[loss] for loss, term in losses.items())
        assert isinstance(total, torch.Tensor)
        total.backward()

    runs: dict[tuple[str, str], Callable[[], object]] = {}
    for name, batch in batches.items():
        runs["packed", name] = partial(trainer.train_step, [batch])
        runs["padded", name] = partial(padded, name)
    for run in runs.values():
        run()
    times: dict[tuple[str, str], list[float]] = {key: [] for key in runs}
    for _ in range(rounds):
        for key, run in runs.items():
            times[key].append(seconds(run))
    flops = {name: model.work(batch).flops for name, batch in batches.items()}
    of_flops = flops["long"] / flops["short"]
    sys.stdout.write(f"FLOPs of the long batch over the short batch: {of_flops:.2f}\n")
    ratios = {}
    for path in ("packed", "padded"):
        short, long = (statistics.median(times[path, name]) for name in ("short", "long"))
        pairs = zip(times[path, "long"], times[path, "short"], strict=True)
        ratios[path] = statistics.median(one / other for one, other in pairs)
        sys.stdout.write(f"{path}: {long:.2f} s long, {short:.2f} s short, ratio {ratios[path]:.2f}\n")
    sys.stdout.write(f"padded over FLOPs: {ratios['padded'] / of_flops:.2f}\n")
    sys.stdout.write(f"ratio: {ratios['packed'] / of_flops:.2f}\n")
    return 0


if __name__ == "__main__":
    sys.exit(call(main, sys.argv[1:], "python -m benchmarks.long_captions"))
