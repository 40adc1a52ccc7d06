"""Fifty steps of a small model, and the planner's estimate of one step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from batches.pretraining import PretrainBatch
from dataset.config import DataConfig, ImageStreamConfig, RegionStreamConfig, TextDataConfig
from engine.config import TrainConfig
from models.pretraining.model import PretrainModel
from optim.config import OptimConfig
from tools.plan.synthetic import pretrain_batch
from tools.steps.fake import FakeSteps

STEPS, AVERAGED_STEPS, MAX_LOSS_RATIO, VOCABULARY = 50, 10, 0.95, 60
DATA = DataConfig(
    images=ImageStreamConfig(files=["x"], batch_size=4),
    regions=RegionStreamConfig(files=["x"], batch_size=6, max_images=3, max_regions=2),
    text=TextDataConfig(max_tokens=10, max_masks=2),
)


def learns(model: PretrainModel) -> None:
    """Trains on one batch of noise with all image and region losses. The mean loss of the last ten of fifty steps must be at most
    0.95 times the mean of the first ten."""
    batch = pretrain_batch(DATA, model.vision, VOCABULARY)
    generator = torch.Generator().manual_seed(0)
    assert batch.images is not None and batch.regions is not None
    noise = [
        torch.randint(0, 256, part.pixels.shape, generator=generator).byte() for part in (batch.images, batch.regions)
    ]
    batch = replace(
        batch, images=replace(batch.images, pixels=noise[0]), regions=replace(batch.regions, pixels=noise[1])
    )
    counts = model.counts(batch)
    optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=1e-3)
    torch.manual_seed(0)
    losses: list[float] = []
    model.train()
    for _ in range(STEPS):
        loss = sum(term.weight * term.total / counts[name] for name, term in model(batch).items())
        assert isinstance(loss, torch.Tensor) and loss.isfinite()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    first, last = sum(losses[:AVERAGED_STEPS]) / AVERAGED_STEPS, sum(losses[-AVERAGED_STEPS:]) / AVERAGED_STEPS
    assert last <= MAX_LOSS_RATIO * first, (
        f"mean loss of the first {AVERAGED_STEPS} steps {first:.3f}, of the last {last:.3f}"
    )


def is_planned(build: Callable[[], PretrainModel]) -> None:
    """The planner runs a step without allocating memory. It counts the bytes of weights and gradients, and activations that grow
    with the batch."""

    def batch_of(model: PretrainModel) -> PretrainBatch:
        return pretrain_batch(DATA, model.vision, VOCABULARY)

    def twice(model: PretrainModel) -> PretrainBatch:
        assert DATA.images is not None
        images = DATA.images.model_copy(update={"batch_size": 2 * DATA.images.batch_size})
        return pretrain_batch(DATA.model_copy(update={"images": images}), model.vision, VOCABULARY)

    steps = FakeSteps(build(), TrainConfig(steps=1, precision="fp32"), OptimConfig(lr=1.0), as_on_gpu=True)
    planned = steps.memory(batch_of, gradients_stay=True)
    parameters = list(build().parameters())
    assert planned.weights >= 4 * sum(each.numel() for each in parameters)
    assert planned.gradients == 4 * sum(each.numel() for each in parameters if each.requires_grad)
    assert 0 < planned.activations < steps.memory(twice, gradients_stay=True).activations
