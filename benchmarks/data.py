"""The data of pre-training, stage by stage: ``python -m benchmarks.data``.

Pictures are JPEGs that the benchmark makes, of COCO's size and about its bytes. Each stage is timed alone, on one core, as the
loader of the image stream runs it at 224 px: read, decode, crop and resize, flip and RandAugment, tokens and masks, collate; then
the whole of it. Times are those of the processor, so that other programs disturb little. Ours and Pillow take turns at decoding
and cropping the same boxes of the same files; the last line is how many times as many pictures ours gives. Before it
stands what a GPU asks of its 8 workers, by the least operations of a step.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.gpu import VOCABULARY, batch_for
from dataset.images import AugmentConfig, RandAugment, decode, hflip, random_box, resize
from dataset.prepare.tokenizer import train_wordpiece
from dataset.pretrain import DataConfig, PretrainBatches
from dataset.records import parse_image_record
from dataset.text import load_tokenizer
from engine.devices import PEAKS
from tasks.pretrain import PretrainConfig, PretrainTask
from utils.config import load_config
from utils.launcher import positive

SIZE, MAX_PIXELS, BATCH = 224, 10**8, 32
WORKERS = 8
UTILISATION = 0.4
"""Of an H100's peak, that a GPU is assumed to reach: the more, the more pictures it asks for."""

CAPTION = [
    "a",
    "man",
    "in",
    "a",
    "red",
    "shirt",
    "is",
    "riding",
    "his",
    "old",
    "bike",
    "down",
    "the",
    "street",
    "near",
    "green",
    "trees",
]
PRESETS = ("configs/pretrain/base_4m.yaml", "configs/pretrain/large_4m.yaml")


def make_pictures(folder: Path, count: int, size: tuple[int, int]) -> None:
    """``count`` JPEGs of smooth noise of several scales, and a shard of JSON lines that describes them."""
    rng = np.random.default_rng(0)
    width, height = size
    lines = []
    for number in range(count):
        picture = np.full((height, width, 3), 128.0)
        for cell, strength in ((160, 60), (40, 35), (10, 20), (3, 14)):
            noise = rng.normal(0, strength, (-(-height // cell) + 1, -(-width // cell) + 1, 3))
            coarse = Image.fromarray((128 + noise).clip(0, 255).astype(np.uint8))
            picture += np.asarray(coarse.resize(size, Image.Resampling.BICUBIC), dtype=np.float64) - 128
        Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(folder / f"{number}.jpg", quality=92)
        words = rng.permutation(CAPTION)[: int(rng.integers(7, 14))].tolist()
        lines.append(json.dumps({"image": f"{number}.jpg", "caption": " ".join(words)}))
    (folder / "pictures.jsonl").write_text("\n".join(lines) + "\n")


class Stages:
    """What the loader of the image stream does, in steps that can be timed apart."""

    def __init__(self, folder: Path):
        train_wordpiece([" ".join(CAPTION)], folder / "tokenizer", vocab_size=60)
        images: Any = {"files": [str(folder / "pictures.jsonl")], "batch_size": BATCH}
        data = DataConfig(images=images, workers=0, cache_index=str(folder / "index"))
        tokenizer = load_tokenizer(folder / "tokenizer")
        self.maker = PretrainBatches(data, tokenizer=tokenizer, image_size=SIZE, patch_size=16, seed=0)
        stream = self.maker.images
        assert stream is not None
        self.stream, self.augment = stream, AugmentConfig()
        self.rand_augment = RandAugment(self.augment.rand_augment_ops, self.augment.rand_augment_magnitude)
        source = stream.sources[0]
        assert source is not None
        self.shards = source.shards

    def rounds(self) -> list[tuple[str, Callable[[], Any]]]:
        """Every stage of as many pictures as there are, each on what the one before has given."""
        rng, count = np.random.default_rng(0), len(self.shards)
        state: dict[str, Any] = {}

        def read() -> None:
            state["raw"] = [self.shards.read(index) for index in range(count)]
            records = [parse_image_record(raw, self.stream.keys, "caption") for raw in state["raw"]]
            state["records"], state["files"] = records, [record.image.load() for record in records]

        def decoded() -> None:
            state["images"] = [decode(content, MAX_PIXELS, "") for content in state["files"]]

        def cropped() -> None:
            state["views"] = [self._crop(image, rng) for image in state["images"]]

        def augmented() -> None:
            state["views"] = [
                self.rand_augment(hflip(view) if rng.random() < self.augment.flip else view, rng)
                for view in state["views"]
            ]

        def text() -> None:
            chosen = [self.maker.text.choose(record.captions, rng, "") for record in state["records"]]
            state["texts"] = [self.maker.text.encode(caption, rng) for caption in chosen]

        def collated() -> None:
            for start in range(0, count, BATCH):
                torch.stack(state["views"][start : start + BATCH])
                self.maker.text.collate(state["texts"][start : start + BATCH])

        return [
            ("read", read),
            ("decode", decoded),
            ("crop and resize", cropped),
            ("flip and RandAugment", augmented),
            ("tokens and masks", text),
            ("collate", collated),
        ]

    def whole(self) -> None:
        """The loader itself, over as many pictures."""
        for number in range(len(self.shards) // BATCH):
            self.maker.make(number)

    def _crop(self, image: Tensor, rng: np.random.Generator) -> Tensor:
        top, left, height, width = random_box(image.shape[1], image.shape[2], self.augment, rng)
        return resize(image[:, top : top + height, left : left + width], SIZE)

    def ours(self, files: Sequence[bytes]) -> None:
        """Decode and crop."""
        rng = np.random.default_rng(1)
        for content in files:
            self._crop(decode(content, MAX_PIXELS, ""), rng)

    def pillow(self, files: Sequence[bytes]) -> None:
        """Decode and crop the same boxes by Pillow alone."""
        rng = np.random.default_rng(1)
        for content in files:
            image = Image.open(io.BytesIO(content)).convert("RGB")
            top, left, height, width = random_box(image.height, image.width, self.augment, rng)
            part = image.crop((left, top, left + width, top + height))
            np.asarray(part.resize((SIZE, SIZE), Image.Resampling.BICUBIC))


def processor_seconds(run: Callable[[], object]) -> float:
    """How long the processor is busy with a call."""
    started = time.process_time()
    run()
    return time.process_time() - started


def needed(preset: str) -> float:
    """Pictures per second that a GPU takes in at the assumed utilisation."""
    config = load_config(preset, [], PretrainConfig)
    with torch.device("meta"):
        model = PretrainTask.build_model(config, VOCABULARY)
    work = model.work(batch_for(config, model))
    return work.images * UTILISATION * PEAKS["h100"].half * 1e12 / work.flops


def tell_stages(stages: Stages, rounds: int) -> float:
    """Print the table, and return the pictures that the whole loader makes per second and core."""
    count = len(stages.shards)
    seconds: dict[str, list[float]] = {}
    for _ in range(rounds):
        for name, run in stages.rounds():
            seconds.setdefault(name, []).append(processor_seconds(run))
        seconds.setdefault("whole loader", []).append(processor_seconds(stages.whole))
    medians = {name: statistics.median(found) for name, found in seconds.items()}
    whole = medians.pop("whole loader")
    parts = sum(medians.values())
    sys.stdout.write(f"{'stage':<22}{'images/s a core':>16}{'share':>8}\n")
    for name, value in medians.items():
        sys.stdout.write(f"{name:<22}{count / value:>16.0f}{value / parts:>8.0%}\n")
    made = (count // BATCH) * BATCH / whole
    sys.stdout.write(f"{'whole loader':<22}{made:>16.0f}\n")
    return made


def tell_presets(made: float) -> None:
    """Print what each preset asks for, beside what its workers make."""
    for preset in PRESETS:
        wanted = needed(preset)
        verdict = "keeps up" if WORKERS * made >= wanted else "does not keep up"
        sys.stdout.write(
            f"{preset}: an H100 at {UTILISATION:.0%} of its peak takes {wanted:.0f} images/s; {WORKERS} workers on cores like "
            f"this one make {WORKERS * made:.0f}: {verdict}\n"
        )


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark and print its ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=positive, default=5, help="pairs of measurements")
    parser.add_argument("--pictures", type=positive, default=256, help="JPEGs that are made")
    parser.add_argument("--small", action="store_true", help="few small pictures: a check that it runs")
    flags = parser.parse_args(argv)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_pictures(folder, BATCH if flags.small else flags.pictures, (160, 120) if flags.small else (640, 480))
        files = [path.read_bytes() for path in sorted(folder.glob("*.jpg"))]
        sizes = statistics.mean(map(len, files)) / 1000
        sys.stdout.write(f"{len(files)} JPEGs of {sizes:.0f} kB on average, views of {SIZE} px\n")
        stages = Stages(folder)
        tell_presets(tell_stages(stages, flags.rounds))
        ratios = []
        for number in range(flags.rounds + 1):
            pillow_s = processor_seconds(lambda: stages.pillow(files))
            ours_s = processor_seconds(lambda: stages.ours(files))
            if number:  # the first round warms up
                ratios.append(pillow_s / ours_s)
                sys.stdout.write(
                    f"decode and crop: Pillow {len(files) / pillow_s:.0f} images/s, ours {len(files) / ours_s:.0f}, "
                    f"ratio {ratios[-1]:.2f}\n"
                )
    sys.stdout.write(f"ratio: {statistics.median(ratios):.2f}\n")


if __name__ == "__main__":
    main()
