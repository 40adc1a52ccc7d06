"""Speed of training steps with native images, relative to square images of the same number of patches:
``python -m benchmarks.native_step``."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from benchmarks.harness import Rounds, print_line, seconds_of
from benchmarks.pretrain_step import float32_trainer
from benchmarks.step_config import config_for
from dataset.tasks.pretrain import PretrainBatches
from dataset.text.loading import load_tokenizer
from tasks.pretrain import PretrainTask
from utils.commands import call

CONFIG = Path("configs/demo/pretrain.yaml")
KINDS = {"fixed": "64", "native": "{max_patches: 64, patch_size: 8}"}
"""Values of ``model.vision.image_size``, by kind."""


def steps_of(kind: str, stem: str, records: Path, count: int) -> Callable[[], None]:
    """Returns a function that runs ``count`` training steps, always on the same batches of records."""
    tokenizer_folder = records.parent / "tokenizer"
    files = [f"data.{stream}.files=[{records}]" for stream in ("images", "regions")]
    vision = [f"model.vision.image_size={KINDS[kind]}", f"model.vision.stem={stem}"]
    sets = [*vision, f"model.text.encoder={tokenizer_folder}", *files]
    config = config_for(CONFIG, sets)
    torch.manual_seed(0)
    tokenizer = load_tokenizer(str(tokenizer_folder))
    model = PretrainTask.build_model(config, len(tokenizer))
    size, patch_size = config.model.vision.image_size, model.vision.patch_size
    batches = PretrainBatches(
        config.data, tokenizer=tokenizer, image_size=size, patch_size=patch_size, seed=config.seed
    )
    trainer, made = float32_trainer(model), [batches.make(number) for number in range(count)]

    def run() -> None:
        for batch in made:
            trainer.train_step([batch])

    return run


def main(
    *,
    flags: Rounds = Rounds(),
    records: Path = Path("data/scenes_aspect/train.jsonl"),
    steps: int = 5,
    stem: Literal["linear", "convolutions"] = "linear",
) -> int:
    """Speed of a training step whose images keep their aspect ratio.

    The model of the demo takes steps on the same records, with its losses, AdamW and float32: once with images of 64 x 64
    pixels, once with native images of at most 64 patches of 8 x 8 pixels. Batches are made before. The ratio is the time with
    fixed images divided by the time with native images, so it is the relative number of images per second.

    Args:
        records: records of scenes of several shapes (``python -m demo.scenes --out data/scenes_aspect --aspect 4``).
        steps: number of steps of a measurement.
        stem: how patches are embedded: linearly, as in the paper, or with the demo's convolutions.

    Examples:
        python -m benchmarks.native_step
    """
    measured = {kind: partial(seconds_of, steps_of(kind, stem, records, steps)) for kind in KINDS}
    compared = flags.compare(measured)
    print_line(f"{steps} steps, {torch.get_num_threads()} threads")
    return flags.conclude(compared.ratio, compared.rounds)


if __name__ == "__main__":
    sys.exit(call(main, sys.argv[1:], "python -m benchmarks.native_step"))
