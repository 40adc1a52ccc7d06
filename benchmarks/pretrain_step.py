"""Time of a pre-training step relative to the vision backbone alone: ``python -m benchmarks.pretrain_step``."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import timm
import torch
from torch import Tensor

from batches.images import raw_pixels
from batches.pretraining import PretrainBatch
from benchmarks.harness import Rounds, print_line, seconds_of
from benchmarks.synthetic import pretrain_batch
from dataset.config import DataConfig, ImageStreamConfig, RegionStreamConfig
from engine.config import TrainConfig
from engine.steps import trainer_of
from engine.trainer import Trainer
from models.config import FusionConfig, PretrainModelConfig, TextArchitecture, TextConfig, VisionConfig
from models.pretraining.model import PretrainModel
from optim.config import OptimConfig
from utils.commands import call

BACKBONE = "beitv2_base_patch16_224"
PAIRS, REGIONS, IMAGES = 8, 12, 4
STREAMS = DataConfig(
    images=ImageStreamConfig(files=[], batch_size=PAIRS),
    regions=RegionStreamConfig(files=[], batch_size=REGIONS, max_images=IMAGES),
)


def build(small: bool) -> tuple[PretrainModel, PretrainBatch]:
    """Builds a model with random weights, and a batch for it."""
    if small:
        vision = VisionConfig(image_size=64, width=64, depth=2, heads=2)
        arch = TextArchitecture(vocab_size=200, width=64, layers=2, heads=2, intermediate=256)
    else:
        vision = VisionConfig(backbone=BACKBONE, image_size=224, drop_path=0.1)
        arch = TextArchitecture(vocab_size=30522)
    fusion = FusionConfig(layers=2 if small else 6)
    model = PretrainModel(PretrainModelConfig(vision=vision, text=TextConfig(arch=arch), fusion=fusion))
    assert arch.vocab_size is not None
    return model, pretrain_batch(STREAMS, model.vision, arch.vocab_size)


def bare_backbone(pixels: Tensor, small: bool) -> Callable[[], None]:
    """Returns a function that runs forward and backward passes of timm's backbone on ``pixels``, (N, 3, H, W) uint8."""
    sizes: dict[str, Any] = {"img_size": 64, "embed_dim": 64, "depth": 2, "num_heads": 2} if small else {}
    backbone: Any = timm.create_model(BACKBONE, num_classes=0, drop_path_rate=0.1, **sizes).train()
    normed = pixels.float() / 127.5 - 1

    def run() -> None:
        backbone.zero_grad()
        backbone(normed).sum().backward()

    return run


def float32_trainer(model: PretrainModel) -> Trainer:
    """Returns a trainer for single steps of a model in float32 on the CPU."""
    train, optim = TrainConfig(steps=1, precision="fp32"), OptimConfig(lr=1e-4)
    return trainer_of(model, train, optim, device=torch.device("cpu"))


def main(*, flags: Rounds = Rounds(), small: bool = False) -> int:
    """Time of a pre-training step relative to the vision backbone alone.

    The step is engine.trainer.Trainer.train_step (forward, backward, clipping, AdamW) of the base model at 224 px in float32, on
    8 image-text pairs and 12 regions of 4 images. The backbone is timm's BEiT-2 base, forward and backward, on the same 12 images
    in one batch, with fused attention and drop path 0.1. The step and the backbone alternate in one process, in training mode.

    The last line is the median ratio of the times. The line before it is the ratio of the fastest times, which is the least
    sensitive to other programs. The memory is the process's peak before the backbone is built. Virtual machines may reclaim
    memory that is idle for some seconds; to prevent this, put MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=1000000000000 before the
    command (benchmarks/README.md).

    Args:
        small: smoke test with a small model.

    Examples:
        python -m benchmarks.pretrain_step
    """
    torch.manual_seed(0)
    model, batch = build(small)
    assert batch.images is not None and batch.regions is not None
    step = partial(float32_trainer(model).train_step, [batch])
    for _ in range(2):  # the first step creates the optimiser states
        step()
    peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    backbone = bare_backbone(torch.cat([raw_pixels(part.pixels) for part in (batch.images, batch.regions)]), small)
    # The round that warms up runs the step with the backbone in memory, so that later steps allocate no new memory.
    compared = flags.compare({"step": partial(seconds_of, step), "backbone alone": partial(seconds_of, backbone)})
    lengths = [part.text.mask.sum(dim=1).float().mean() for part in (batch.images, batch.regions)]
    print_line(
        f"{PAIRS} captions of {lengths[0]:.1f} tokens, {REGIONS} texts of regions of {lengths[1]:.1f} on {IMAGES} images, "
        f"{torch.get_num_threads()} threads"
    )
    print_line(f"peak memory of the steps: {peak_gib:.2f} GiB")
    fastest_step, fastest_backbone = map(min, zip(*(values.values() for values in compared.rounds), strict=True))
    print_line(f"fastest step over fastest backbone: {fastest_step / fastest_backbone:.2f}")
    return flags.conclude(compared.ratio, compared.rounds, peak_gib=peak_gib)


if __name__ == "__main__":
    sys.exit(call(main, sys.argv[1:], "python -m benchmarks.pretrain_step"))
