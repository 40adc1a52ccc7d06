"""Compares the speed of Parquet shards and tars of the same pictures: ``python -m benchmarks.parquet``."""

from __future__ import annotations

import io
import statistics
import sys
import tarfile
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks.harness import Rounds, print_line
from benchmarks.loader_rates import CONFIG, processor_s
from benchmarks.records import caption, noise_image
from dataset.loaders import BatchLoader
from dataset.prepare.tokenizer import train_wordpiece
from dataset.tasks.pretrain import PretrainBatches
from dataset.text.loading import load_tokenizer
from tasks.config import PretrainConfig
from utils.commands import call
from utils.config import load_config
from utils.flags import Positive

SIZES = ((320, 240), (400, 300), (300, 400), (256, 256))
WORDS = ["a", "dog", "cat", "red", "house", "on", "the", "street", "two", "people", "with", "tree", "near", "of"]
DISTINCT, BATCH = 64, 32
BLOCK_RECORDS = 50
"""Records per block. Blocks are small, so that an epoch has several windows, as it has with more data."""
HUB_ROWS = (100, 1000)
"""Rows per row group in data sets on the Hugging Face Hub."""


def write_shards(folder: Path, shards: int, rows: int) -> float:
    """Writes the same pictures with captions as tars, and as Parquet files with row groups of different sizes.

    Returns the mean size of a picture in bytes.
    """
    import pyarrow
    import pyarrow.parquet

    rng, contents = np.random.default_rng(0), []
    for number in range(DISTINCT):
        stream = io.BytesIO()
        noise_image(*SIZES[number % len(SIZES)], rng).save(stream, "JPEG", quality=90)
        contents.append(stream.getvalue())
    group_rows = {f"parquet-{size}": size for size in HUB_ROWS}
    group_rows["parquet-16MB"] = int(16e6 * DISTINCT / sum(map(len, contents)))
    texts = [caption(WORDS, 10.5, 2.5, rng) for _ in range(shards * rows)]
    for form in ("tar", *group_rows):
        (folder / form).mkdir()
    for shard in range(shards):
        images = [contents[int(index)] for index in rng.integers(0, DISTINCT, rows)]
        own = texts[shard * rows : (shard + 1) * rows]
        with tarfile.open(folder / "tar" / f"{shard:05d}.tar", "w") as tar:
            for row, (image, text) in enumerate(zip(images, own, strict=True)):
                for suffix, content in (("jpg", image), ("txt", text.encode())):
                    info = tarfile.TarInfo(f"{row:06d}.{suffix}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
        # Unique names make all rows different, so that Parquet does not store repeated pictures only once.
        values = [{"bytes": image, "path": f"{row}.jpg"} for row, image in enumerate(images)]
        table = pyarrow.table({"image": values, "caption": own})
        for form, size in group_rows.items():
            pyarrow.parquet.write_table(
                table, folder / form / f"{shard:05d}.parquet", row_group_size=size, use_dictionary=["caption"]
            )
    train_wordpiece(texts, folder / "tokenizer", vocab_size=1000)
    return sum(map(len, contents)) / DISTINCT


def views_per_second(folder: Path, form: str, batches: int) -> tuple[float, float]:
    """Measures how many views the trainer's loader with two workers yields per second after the first batch, and per second of
    CPU time of all processes since their start. CPU time is less sensitive to other programs. The cache is empty at the start."""
    with tempfile.TemporaryDirectory(dir=folder) as cache:
        return _views_per_second(folder, form, cache, batches)


def _views_per_second(folder: Path, form: str, cache: str, batches: int) -> tuple[float, float]:
    changes = [
        f"data.images.files=[{folder / form}]",
        "data.regions=null",
        "data.images.image_key=image",
        "data.images.caption_key=caption",
        f"data.images.batch_size={BATCH}",
        "data.images.order=blocks",
        "data.images.lanes=2",
        f"data.images.block_records={BLOCK_RECORDS}",
        f"data.cache_index={folder}/index",
        f"data.remote.cache={cache}",
        "data.workers=2",
    ]
    config = load_config(CONFIG, changes, PretrainConfig)
    maker = PretrainBatches(
        config.data,
        tokenizer=load_tokenizer(folder / "tokenizer"),
        image_size=config.model.vision.image_size,
        patch_size=16,
        seed=0,
    )
    spent = processor_s()
    loader = iter(BatchLoader(maker, config.data).batches(0, batches))
    first = next(loader)  # the workers have started
    assert not first.broken, first.broken[0]
    started = time.perf_counter()
    count = sum(batch.read for batch in loader)
    seconds = time.perf_counter() - started
    return count / seconds, (count + first.read) / (processor_s() - spent)


def median_ratio(rates: Sequence[float], of_tar: Sequence[float]) -> float:
    """Returns the median, over rounds, of the rates divided by the rates of tars."""
    return statistics.median(rate / tar for rate, tar in zip(rates, of_tar, strict=True))


def main(*, flags: Rounds = Rounds(), shards: Positive = 8, rows: Positive = 1000) -> int:
    """Compares the speed of Parquet shards and tars of the same pictures.

    The trainer's loader reads an epoch of pairs with two workers and ``order: blocks``: from tars, and from Parquet files with
    row groups of 16 MB (run.py prepare parquet), of 100 rows and of 1000 rows (common on the Hugging Face Hub). The formats
    alternate. Each round starts with an empty cache, so every row group is decoded once.

    Args:
        shards: number of files of each format.
        rows: number of pictures per file.

    Examples:
        python -m benchmarks.parquet
    """
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        size = write_shards(folder, shards, rows)
        forms = ["tar", "parquet-16MB", *(f"parquet-{each}" for each in HUB_ROWS)]
        print_line(f"{shards * rows:,} pictures of {size / 1e3:.0f} kB on average, 2 workers, order: blocks")
        batches = shards * rows // BATCH
        rates = list(flags.measured({form: partial(views_per_second, folder, form, batches) for form in forms}))
    ratios = {}
    for form in forms:
        wall, core = zip(*(values[form] for values in rates), strict=True)
        tar_wall, tar_core = zip(*(values["tar"] for values in rates), strict=True)
        ratios[form] = median_ratio(wall, tar_wall)
        print_line(
            f"{form}: {statistics.median(wall):,.0f} views/s (rounds {min(wall):,.0f} to {max(wall):,.0f}), "
            f"{ratios[form]:.2f} of tar; {statistics.median(core):,.0f} per second of CPU time, "
            f"{median_ratio(core, tar_core):.2f} of tar"
        )
    return flags.conclude(min(ratios.values()), rates)


if __name__ == "__main__":
    sys.exit(call(main, sys.argv[1:], "python -m benchmarks.parquet"))
