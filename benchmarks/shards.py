"""Speed of indexing tars, and cost of opening 130,000 of them: ``python -m benchmarks.shards``."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import re
import statistics
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dataset.config import BLOCK_RECORDS
from dataset.shards import making
from dataset.shards.blocks import BlockOrder
from dataset.shards.index import name_of
from dataset.shards.making import states_of
from dataset.shards.readers import Shards
from dataset.shards.samplers import Order, RandomOrder
from utils.commands import call

SHARDS, RECORDS = 130_000, 1_300_000_000
TARS, PER_TAR, IMAGE_BYTES = 8, 10_000, 2_000
SMALL_RECORDS = 10
POSITIONS, BATCH, LANES = 100_000, 1024, 64


def write_tars(folder: Path, tars: int, per_tar: int) -> list[Path]:
    """Writes tars in img2dataset's format: an image, a caption and JSON for each record."""
    content = os.urandom(IMAGE_BYTES)
    paths = []
    for shard in range(tars):
        paths.append(folder / f"{shard:05d}.tar")
        with tarfile.open(paths[-1], "w") as tar:
            for row in range(per_tar):
                name = f"{shard:05d}{row:04d}"
                entries = {"jpg": content, "txt": b"a photo of a dog", "json": json.dumps({"key": name}).encode()}
                for suffix, data in entries.items():
                    info = tarfile.TarInfo(f"{name}.{suffix}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    return paths


def index_rate(paths: Sequence[Path], folder: Path, workers: int, rounds: int) -> float:
    """Measures how many records are indexed per second, as the median of several rounds."""
    rates = []
    for round_ in range(rounds):
        started = time.perf_counter()
        made = making.open_index(paths, folder / f"{workers}-{round_}", "files", workers)
        rates.append(sum(made.sizes) / (time.perf_counter() - started))
    return statistics.median(rates)


def write_large(folder: Path, shards: int, records: int) -> list[str]:
    """Writes empty shards, and an index that claims they contain ``records`` records. Returns the config entries for them."""
    (folder / "data").mkdir()
    for shard in range(shards):
        (folder / "data" / f"{shard:06d}.tar").touch()
    paths = sorted((folder / "data").iterdir())
    states = states_of(paths, "files")
    each, zero = np.full((shards, 1), records // shards, np.int64), np.zeros((shards, 1), np.int64)
    table = np.concatenate([states, each, zero, zero + 1, zero], axis=1)  # the columns of dataset.shards.index
    made = folder / "index" / f"{name_of(paths)}.index"
    made.mkdir(parents=True)
    np.save(made / "shards.npy", table)
    np.save(made / "irregularities.npy", np.empty((0, 2), np.int64))
    np.lib.format.open_memmap(made / "starts.npy", "w+", np.dtype(np.int64), (int(each.sum()),)).flush()
    return [str(folder / "data")]


def anonymous_mib() -> float:
    """Returns the anonymous memory of this process in MiB."""
    text = Path("/proc/self/smaps_rollup").read_text(encoding="utf-8")
    found = re.search(r"^Anonymous:\s+(\d+) kB", text, re.MULTILINE)
    assert found is not None
    return int(found[1]) / 1024


def open_large(files: list[str], folder: Path) -> dict[str, float]:
    """Measures the costs of opening the large data set in this process. Returns them by name."""
    before, descriptors = anonymous_mib(), len(os.listdir("/proc/self/fd"))
    started = time.perf_counter()
    shards = Shards(files, index_folder=folder / "index")
    opened = time.perf_counter() - started
    rate = position_rate(shards, RandomOrder(len(shards), BATCH, seed=0, stream="images"))
    memory, files_open = anonymous_mib() - before, len(os.listdir("/proc/self/fd")) - descriptors
    started = time.perf_counter()
    blocks = BlockOrder(
        shards.sizes, BATCH, lanes=LANES, block_records=BLOCK_RECORDS, step=LANES, seed=0, stream="images"
    )
    made = time.perf_counter() - started
    in_blocks = position_rate(shards, blocks)
    return {
        "seconds to open": opened,
        "MiB anonymous": memory,
        "descriptors": files_open,
        "positions/s": rate,
        "seconds to build the block order": made,
        "MiB anonymous with the block order": anonymous_mib() - before,
        "positions/s in block order": in_blocks,
    }


def index_small(folder: Path, shards: int) -> dict[str, float]:
    """Measures the costs of indexing many small shards, of opening the index again, and of opening another list that contains
    all of these shards but one. Returns them by name."""
    (folder / "small").mkdir()
    content = '{"a": 1}\n' * SMALL_RECORDS
    for shard in range(shards):
        (folder / "small" / f"{shard:06d}.jsonl").write_text(content)
    files = [str(path) for path in sorted((folder / "small").iterdir())]
    costs = {}
    for what, entries in (("to index", files), ("to open again", files), ("to open all but one", files[1:])):
        before, started = anonymous_mib(), time.perf_counter()
        Shards(entries, index_folder=folder / "index")
        costs[f"seconds {what}"] = time.perf_counter() - started
        costs[f"MiB anonymous {what}"] = anonymous_mib() - before
    return costs


def position_rate(shards: Shards, order: Order) -> float:
    """Measures how many positions per second are mapped to locations of records."""
    started, batches = time.perf_counter(), POSITIONS // BATCH
    for batch in range(batches):
        for _, number in order.batch(batch):
            shards.index.span(*shards._locate(number))
    return batches * BATCH / (time.perf_counter() - started)


def in_a_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Runs a function in a new process and returns its result."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def main(
    *, tars: int = TARS, per_tar: int = PER_TAR, shards: int = SHARDS, records: int = RECORDS, rounds: int = 3
) -> int:
    """Speed of indexing tars, and cost of opening 130,000 of them.

    The first part writes tars of small images with captions and JSON, and indexes them from the page cache, with one process and
    with two. The second part creates one empty file for each shard of the paper's largest data set, and an index as large as all
    of its records need (a sparse file, which takes no disk space). It opens the index in a separate process and prints the
    seconds, the anonymous memory beyond imports, the open files, and how many positions per second are mapped to locations of
    records, in random order and in block order. The third part indexes small shards, and opens
    another list of them.

    Args:
        tars: number of tars to index.
        per_tar: number of images per tar.
        shards: number of empty shards in the second part.
        records: number of records in the index of the second part.
        rounds: number of measurements.

    Examples:
        python -m benchmarks.shards
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "tars").mkdir()
        paths = write_tars(folder / "tars", tars, per_tar)
        for workers in (1, 2):
            rate = index_rate(paths, folder / "made", workers, rounds)
            sys.stdout.write(f"indexed by {workers}: {rate:,.0f} records/s\n")
        files = write_large(folder, shards, records)
        for what, value in in_a_process(open_large, files, folder).items():
            sys.stdout.write(f"{shards:,} shards, {records:,} records: {value:,.1f} {what}\n")
        for what, value in in_a_process(index_small, folder, shards).items():
            sys.stdout.write(f"{shards:,} shards of {SMALL_RECORDS} records: {value:,.1f} {what}\n")
    return 0


if __name__ == "__main__":
    sys.exit(call(main, sys.argv[1:], "python -m benchmarks.shards"))
