"""The loader of this project and open_clip's WebDataset pipeline on the same tars: ``python -m benchmarks.duel_loader``."""

from __future__ import annotations

import io
import json
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from benchmarks.harness import Rounds, print_line
from benchmarks.loader_rates import processor_s
from benchmarks.records import write_records
from dataset.loaders import BatchLoader
from dataset.tasks.pretrain import PretrainBatches
from dataset.text.loading import load_tokenizer
from tasks.config import PretrainConfig
from utils.commands import call
from utils.config import load_config
from utils.extras import require
from utils.flags import Positive

CONFIG = "configs/pretrain/base_4m.yaml"
SIZE, TOKENS, SHARDS = 224, 77, 4


def write_tars(folder: Path, images: int, distinct: int) -> list[Path]:
    """Writes shards of JPEG images of COCO's sizes with captions, and a tokenizer. ``distinct``: number of different images."""
    write_records(folder, distinct, images)
    captions = [json.loads(line)["caption"] for line in (folder / "pairs.jsonl").read_text().splitlines()]
    paths = [folder / f"{number:05d}.tar" for number in range(SHARDS)]
    for shard, path in enumerate(paths):
        with tarfile.open(path, "w") as tar:
            for index in range(shard, images, SHARDS):
                picture = (folder / f"{index % distinct}.jpg").read_bytes()
                for suffix, content in (("jpg", picture), ("txt", captions[index].encode())):
                    member = tarfile.TarInfo(f"{index:08d}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return paths


def our_images(folder: Path, tars: list[Path], batch: int, workers: int, images: int) -> int:
    """Loads an epoch with this project, and returns the number of images. Augmentation is open_clip's: a crop of at least 90 % of
    the area."""
    overrides = [
        f"data.images.files={[str(path) for path in tars]}",
        f"data.images.batch_size={batch}",
        "data.images.augment={scale: [0.9, 1.0], ratio: [0.75, 1.3333], flip: 0.0, rand_augment_ops: 0}",
        "data.regions=null",
        f"data.workers={workers}",
        f"data.cache_index={folder}/index",
        f"data.text.max_tokens={TOKENS}",
    ]
    data = load_config(CONFIG, overrides, PretrainConfig).data
    tokenizer = load_tokenizer(folder / "tokenizer")
    batches = PretrainBatches(data, tokenizer=tokenizer, image_size=SIZE, patch_size=16, seed=0)
    return sum(each.read for each in BatchLoader(batches, data).batches(0, images // batch))


def their_images(folder: Path, tars: list[Path], batch: int, workers: int, images: int) -> int:
    """Loads an epoch with open_clip, and returns the number of images."""
    image_transform = require("open_clip.transform", "duel", where="benchmarks.duel_loader").image_transform
    get_wds_dataset = require("open_clip_train.data", "duel", where="benchmarks.duel_loader").get_wds_dataset
    tokenizer = load_tokenizer(folder / "tokenizer")

    def tokens(text: str) -> Any:
        options = {"padding": "max_length", "truncation": True, "max_length": TOKENS, "return_tensors": "pt"}
        return tokenizer(text, **options).input_ids

    arguments = SimpleNamespace(
        train_data="::".join(map(str, tars)),
        train_num_samples=images,
        train_data_upsampling_factors=None,
        dataset_resampled=False,
        seed=0,
        batch_size=batch,
        workers=workers,
        world_size=1,
    )
    loader = get_wds_dataset(arguments, image_transform(SIZE, is_train=True), True, tokenizer=tokens).dataloader
    return sum(len(pixels) for pixels, _ in loader)


def main(*, images: Positive = 1024, batch: Positive = 64, workers: Positive = 1, flags: Rounds = Rounds()) -> int:
    """Compares the loader of this project with open_clip's WebDataset pipeline on the same tars.

    Both decode and crop JPEG images of COCO's sizes to 224 pixels and tokenise captions with the same tokenizer, in worker
    processes. open_clip also normalises the pixels, and this project masks words. The last line is the CPU time per image of
    open_clip divided by the CPU time per image of this project.

    Args:
        images: number of images.
        batch: images per batch.
        workers: number of worker processes.
        flags: rounds.
    """

    def measure(load: Callable[..., int]) -> np.ndarray:
        cpu, wall = processor_s(), time.perf_counter()
        loaded = load(folder, tars, batch, workers, images)
        return np.array([processor_s() - cpu, time.perf_counter() - wall]) / loaded

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tars = write_tars(folder, images, distinct=min(images, 64))
        alternatives = {"open_clip": lambda: measure(their_images), "ours": lambda: measure(our_images)}
        rounds = []
        for values in flags.measured(alternatives):
            rates = {side: (1 / values[side]).round(1).tolist() for side in values}
            rounds.append(rates)
            shown = ", ".join(f"{side} {cpu:.0f} and {wall:.0f}" for side, (cpu, wall) in rates.items())
            print_line(f"images per second of CPU and of wall time: {shown}")
    cpu, wall = (float(np.median([each["ours"][way] / each["open_clip"][way] for each in rounds])) for way in (0, 1))
    print_line(f"images per second of wall time: ours / open_clip {wall:.2f}")
    return flags.conclude(cpu, rounds, wall=wall)


if __name__ == "__main__":
    sys.exit(call(main, sys.argv[1:], "python -m benchmarks.duel_loader"))
