"""Measures the throughput of the configs' loaders on synthetic files, and computes the throughput that training steps need."""

from __future__ import annotations

import functools
import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dataset.config import DataConfig
from dataset.loaders import BatchLoader
from dataset.tasks.pretrain import PretrainBatches
from dataset.text.loading import load_tokenizer
from engine.devices import peak
from tasks.binding import bind_run
from tasks.config import PretrainConfig
from tools.plan.synthetic import synthetic_batch
from utils.config import load_config

CONFIG = Path("configs/pretrain/base_4m.yaml")
VIDEO_CONFIG = Path("configs/pretrain/base_1b_stage2.yaml")
FINE_TUNING = (
    "retrieval/coco_base_4m.yaml",
    "nlvr/nlvr2_base_4m.yaml",
    "grounding/refcoco_plus_base_4m.yaml",
    "vqa/vqa2_base_4m.yaml",
    "captioning/coco_base_4m.yaml",
    "retrieval/msrvtt_base.yaml",
    "vqa/msrvtt_qa_base.yaml",
    "vqa/msvd_qa_base.yaml",
)
WORKERS = 8
STORED = ("lists", "files")
"""The ways to store a video: as a list of JPEG images, or as a video file."""


@dataclass(frozen=True)
class Scale:
    """Size of the measurement.

    Attributes:
        images: number of JPEG files.
        videos: number of videos.
        seconds: length of each video.
        divide: divisor of the sides of images and videos.
        records: number of records of each kind.
        batches: number of micro-batches that are loaded.
        config: overrides of the config.
    """

    images: int
    videos: int
    seconds: int
    divide: int
    records: int
    batches: int
    config: tuple[str, ...] = ()


FULL = Scale(images=64, videos=2, seconds=16, divide=1, records=256, batches=6)
SMALL = Scale(
    images=8,
    videos=1,
    seconds=3,
    divide=4,
    records=8,
    batches=2,
    config=(
        "data.images.batch_size=4",
        "data.regions.batch_size=4",
        "data.regions.max_images=2",
        "data.videos.batch_size=2",
    ),
)


@dataclass(frozen=True)
class Files:
    """The files that :mod:`benchmarks.records` has written to ``folder``."""

    folder: Path
    scale: Scale

    def config(self, path: Path, stored: str = STORED[0]) -> PretrainConfig:
        """Loads a pre-training config that reads these files. ``stored`` says how videos are stored."""
        files = {"images": "pairs", "regions": "regions"}
        if path == VIDEO_CONFIG:
            files["videos"] = stored
        changes = [text for text in self.scale.config if text.split(".")[1] in files]
        for stream, name in files.items():
            changes.append(f"data.{stream}.files=[{self.folder}/{name}.jsonl]")
        if path == VIDEO_CONFIG:
            changes += ["data.videos.clean=null", "data.videos.video_key=video", "data.videos.caption_key=caption"]
        return load_config(path, [*changes, f"data.cache_index={self.folder}/index"], PretrainConfig)

    def batches(
        self, data: DataConfig, *, size: int = 224, frames: int | None = None, **streams: Any
    ) -> PretrainBatches:
        """Returns an object that makes micro-batches. Passing None for a stream removes this stream."""
        return PretrainBatches(
            data.model_copy(update=streams),
            tokenizer=load_tokenizer(self.folder / "tokenizer"),
            image_size=size,
            patch_size=16,
            seed=0,
            frames=frames,
        )

    def loader_rate(self, path: Path, workers: int, rounds: int, stored: str = STORED[0]) -> tuple[float, float]:
        """Measures how many images (including frames) the trainer's loader yields per second of CPU time, and per second of wall
        time."""
        config = self.config(path, stored)
        data, frames = config.data.model_copy(update={"workers": workers}), config.model.vision.video
        maker = self.batches(data, frames=frames.frames if frames else None)
        more = data.videos.batch_size * (frames.frames - 1) if data.videos and frames else 0
        rates = []
        for _ in range(rounds):
            started, clock = processor_s(), time.perf_counter()
            loader = BatchLoader(maker, data).batches(0, self.scale.batches)
            images = sum(batch.read + more for batch in loader)
            rates.append((images / (processor_s() - started), images / (time.perf_counter() - clock)))
        core, wall = (statistics.median(column) for column in zip(*rates, strict=True))
        return core, wall

    def stream_rate(self, rounds: int, size: int, frames: int | None, stored: str) -> float:
        """Measures the images per second of CPU time at ``size`` pixels, from pairs, or from videos of ``frames`` frames."""
        data = self.config(CONFIG if frames is None else VIDEO_CONFIG, stored).data
        others = {name: None for name in data.streams() if name != ("images" if frames is None else "videos")}
        maker = self.batches(data, size=size, frames=frames, **others)
        maker.make(0)
        times = []
        for number in range(1, rounds + 1):
            started = time.process_time()
            maker.make(number)
            times.append(time.process_time() - started)
        return maker.examples_per_batch * (frames or 1) / statistics.median(times)


def processor_s() -> float:
    """Returns the CPU time of this process and its finished workers in seconds."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def print_loaders(files: Files, rounds: int) -> Callable[[PretrainConfig | Any, str], float]:
    """Measures the loaders of pre-training and prints their rates. Returns a function that computes a worker's images/s from a
    config and the way videos are stored."""

    def rate(path: Path, workers: int, stored: str = STORED[0]) -> float:
        core, wall = files.loader_rate(path, workers, rounds, stored)
        videos = f", videos as {stored}" if path == VIDEO_CONFIG else ""
        sys.stdout.write(
            f"loader of {path.stem}{videos}, {workers} workers: {core:,.0f} images/s/core, {wall:,.0f} images/s\n"
        )
        return core

    alone, shared = (rate(CONFIG, workers) for workers in (0, 2))
    mixed = {stored: rate(VIDEO_CONFIG, 2, stored) for stored in STORED}
    stream = functools.cache(functools.partial(files.stream_rate, rounds))

    def worker_rate(config: PretrainConfig | Any, stored: str) -> float:
        video = config.model.vision.video
        if isinstance(config, PretrainConfig):
            return mixed[stored] if video else shared
        # A worker that runs next to another worker is slower than a single process.
        return stream(config.model.vision.image_size, video.frames if video else None, stored) * shared / alone

    return worker_rate


def print_needs(
    worker_rate: Callable[[PretrainConfig | Any, str], float],
    gpu: str,
    utilisation: float,
    step_images_per_s: float | None,
) -> None:
    """Prints the images/s that a GPU needs and the images/s that its workers load, for pre-training and for the base model of
    each task."""
    sys.stdout.write(
        f"assumed: {utilisation:.0%} of the peak of one {gpu}, texts of maximum "
        f"length\n{'config':32}{'pixels':>7}{'images/step':>15}{'TFLOP/step':>14}{'needed images/s':>17}{'8 workers load':>16}\n"
    )
    for path in [*sorted(CONFIG.parent.glob("*.yaml")), *(CONFIG.parents[1] / name for name in FINE_TUNING)]:
        run = bind_run(path, [])
        config, kind = run.config, run.source.load().task
        if not config.model.text.knows_vocabulary:
            continue  # its vocabulary size is known only to a tokenizer, which may not be installed
        with torch.device("meta"):
            model = kind.build_model(config, None)
        work = model.work(synthetic_batch(config, model))
        step_s = work.flops / (1e12 * peak(gpu, config.train.precision) * utilisation)
        needed = step_images_per_s or work.images / step_s
        sys.stdout.write(
            f"{path.parent.name + '/' + path.stem:32}{config.model.vision.image_size:7}{work.images:15.0f}"
            f"{work.flops / 1e12:14.2f}{needed:17,.0f}"
        )
        for stored in STORED if config.model.vision.video else STORED[:1]:
            loaded = WORKERS * worker_rate(config, stored)
            storage = f" ({stored})" if config.model.vision.video else ""
            sys.stdout.write(f"{loaded:16,.0f} {'enough' if loaded >= needed else 'too slow'}{storage}")
        sys.stdout.write("\n")
