"""Whether a small model learns within fifty steps."""

from __future__ import annotations

from dataclasses import replace

import torch

from dataset.tasks.pretrain import DataConfig, ImageStreamConfig, RegionStreamConfig
from dataset.text.processors import TextDataConfig
from models.pretraining.model import PretrainModel
from tools.plan.synthetic import pretrain_batch

STEPS, FEW, LESS = 50, 10, 0.95


def learns(model: PretrainModel, vocabulary: int = 60) -> None:
    """Trains on one batch of noise with all losses of images and regions: the mean loss of the last ten of fifty steps is at most
    0.95 of that of the first ten."""
    text = TextDataConfig(max_tokens=10, max_masks=2)
    data = DataConfig(
        images=ImageStreamConfig(files=["x"], batch_size=4),
        regions=RegionStreamConfig(files=["x"], batch_size=6, max_images=3, max_regions=2),
        text=text,
    )
    batch = pretrain_batch(data, model.vision, vocabulary)
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
    first, last = sum(losses[:FEW]) / FEW, sum(losses[-FEW:]) / FEW
    assert last <= LESS * first, f"mean loss of the first {FEW} steps {first:.3f}, of the last {last:.3f}"
