"""Speed of the data pipeline of pre-training, on one core: ``python -m benchmarks.data``."""

from __future__ import annotations

import io
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as pillow

from batches.images import stack_views
from benchmarks.harness import Comparison, Rounds
from benchmarks.loader_rates import CONFIG, FULL, SMALL, Files, print_loaders, print_needs
from benchmarks.records import write_records, write_videos
from dataset.config import DataConfig
from dataset.media.augment import RandAugment, draw_crop, hflip, resize
from dataset.media.encoded import EncodedImage, crop
from dataset.records.schema import parse_image_record
from dataset.tasks.pretrain import PretrainBatches
from dataset.tasks.streams.pairs import ImageStream
from engine.devices import ASSUMED_UTILISATION, PEAKS
from utils.commands import call
from utils.flags import Fraction, PositiveReal, one_of, read_by, whole_number

_MAX_DIFFERENCE = 0.5
"""Maximum mean difference in grey levels; Pillow and torch round differently in a bicubic resize."""

Box = tuple[int, int, int, int]
"""Top, left, height and width in pixels."""


def cpu_seconds(run: Callable[[Any], Any], items: Iterable[Any]) -> float:
    """Returns the CPU time of ``run`` on all items in seconds."""
    started = time.process_time()
    for item in items:
        run(item)
    return time.process_time() - started


class Laps:
    """Accumulates CPU time by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.last = time.process_time()

    def lap(self, name: str) -> None:
        """Adds the time since the last call to the total of ``name``."""
        now = time.process_time()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self.last
        self.last = now


def time_stages(stream: ImageStream, size: int) -> dict[str, float]:
    """Measures how many seconds each stage takes for a micro-batch of pairs. The stages are the steps of
    :meth:`ImageStream.batch`."""
    source, text, config = stream.source, stream.text, stream.view.config
    augment = RandAugment(config.rand_augment_ops, config.rand_augment_magnitude)
    views, texts, laps = [], [], Laps()
    for index, rng in source.samples(0):
        laps.lap("order")
        record = parse_image_record(source.records.read(index), stream.keys, stream.config.caption_key)
        content = record.image.load()
        laps.lap("read")
        caption = text.choose(record.captions, rng)
        laps.lap("tokenise and mask")
        image = EncodedImage(content, stream.view.max_pixels)
        part = crop(image, *draw_crop(*image.shape[1:], config, rng))
        laps.lap("decode")
        view = resize(part, size)
        laps.lap("resize")
        view = hflip(view) if rng.random() < config.flip else view
        laps.lap("flip")
        views.append(augment(view, rng))
        laps.lap("RandAugment")
        texts.append(text.encode(caption, rng))
        laps.lap("tokenise and mask")
    stack_views(views, size)
    text.collate(texts)
    laps.lap("collate")
    return laps.seconds


def print_stages(maker: PretrainBatches, size: int, rounds: int) -> None:
    """Prints median times of the stages and of the whole stream."""
    stream = maker.streams["images"]
    assert isinstance(stream, ImageStream)
    maker.make(0)
    rounds_s = [(time_stages(stream, size), cpu_seconds(maker.make, [0])) for _ in range(rounds)]
    times = {name: statistics.median(stages[name] for stages, _ in rounds_s) for name in rounds_s[0][0]}
    times["sum of stages"] = total = sum(times.values())
    times["whole stream"] = statistics.median(whole for _, whole in rounds_s)
    sys.stdout.write(f"{'stage':20}{'ms/image':>12}{'images/s/core':>17}{'share':>8}\n")
    for name, value in times.items():
        image_s = value / maker.examples_per_batch
        sys.stdout.write(f"{name:20}{1e3 * image_s:12.3f}{1 / image_s:17,.0f}{value / total:8.1%}\n")


def with_pillow(content: bytes, part: Box, size: int) -> Tensor:
    """Decodes, crops and resizes with Pillow, as torchvision's transforms do."""
    image = Image.open(io.BytesIO(content)).convert("RGB")
    return pillow.pil_to_tensor(pillow.resized_crop(image, *part, [size, size], InterpolationMode.BICUBIC))


def compare_with_pillow(contents: Sequence[bytes], data: DataConfig, size: int, flags: Rounds) -> Comparison:
    """Compares Pillow's CPU time per image with ours, on the same files and crops."""
    assert data.images is not None
    config = data.images.augment
    images = [EncodedImage(content, data.max_pixels) for content in contents]
    parts = [draw_crop(*image.shape[1:], config, np.random.default_rng(n)) for n, image in enumerate(images)]

    def ours(number: int) -> Tensor:
        return resize(crop(EncodedImage(contents[number], data.max_pixels), *parts[number]), size)

    def usual(number: int) -> Tensor:
        return with_pillow(contents[number], parts[number], size)

    numbers = range(len(contents))
    difference = max(float((ours(n).float() - usual(n).float()).abs().mean()) for n in numbers)
    assert difference < _MAX_DIFFERENCE, f"pixels differ by {difference:.2f} on average"
    sys.stdout.write("decode, crop and resize, per image:\n")
    return flags.compare(
        {
            "Pillow": lambda: cpu_seconds(usual, numbers) / len(contents),
            "ours": lambda: cpu_seconds(ours, numbers) / len(contents),
        }
    )


def main(
    *,
    flags: Rounds = Rounds(),
    small: bool = False,
    quality: Annotated[int, read_by(whole_number(1, 100))] = 90,
    gpu: Annotated[str, read_by(one_of(list(PEAKS)))] = "h100",
    utilisation: Fraction = ASSUMED_UTILISATION,
    step_images_per_s: PositiveReal | None = None,
) -> int:
    """Speed of the data pipeline of pre-training, on one core.

    The benchmark writes JPEG files of COCO's sizes to a temporary folder (benchmarks.records), which the system caches. It
    measures CPU time (time.process_time), which is less sensitive to other programs than wall time, of:

    - each stage of the image-text stream alone, through the functions that a run calls, and the whole stream;
    - the loader of configs/pretrain/base_4m.yaml (pairs and regions), without workers and with two;
    - the loader of configs/pretrain/base_1b_stage2.yaml with two workers, with videos stored as lists of images or as files.

    A table then compares the images/s that a step of each config needs with the images/s of eight workers. The time of a step
    is computed from the model's FLOPs and an assumed fraction of a GPU's peak. Each worker is assumed to be as fast as one of two
    workers: for pre-training, in the loaders above; for other tasks, on pairs or on videos with the same number of frames, at the
    task's image size.

    The last line is the median ratio of two times on the same files and crops: the time in which Pillow decodes, crops and
    bicubically resizes to a uint8 tensor, over ours.

    Args:
        small: smoke test with few and small images.
        quality: quality of the JPEG files, 1 to 100 (90: about COCO's 160 kB).
        gpu: GPU for which the needed images/s are computed.
        utilisation: assumed fraction of the GPU's peak (default: as in run.py plan).
        step_images_per_s: measured images/s of a step, used instead of the assumed utilisation.

    Examples:
        python -m benchmarks.data
    """
    scale = SMALL if small else FULL
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = Files(folder, scale)
        mean = write_records(folder, scale.images, scale.records, divide=scale.divide, quality=quality)
        sys.stdout.write(f"{scale.images} JPEG files of {mean / 1e3:.0f} kB on average, one thread\n")
        file, frame = write_videos(folder, scale.videos, scale.records, seconds=scale.seconds, divide=scale.divide)
        sys.stdout.write(
            f"{scale.videos} video files of {scale.seconds} s and {file / 1e3:.0f} kB, as lists {frame / 1e3:.0f} kB "
            "per frame\n"
        )
        data = files.config(CONFIG).data
        contents = [path.read_bytes() for path in sorted(folder.glob("*.jpg"))]
        print_stages(files.batches(data, regions=None), 224, flags.rounds)
        print_needs(print_loaders(files, flags.rounds), gpu, utilisation, step_images_per_s)
        compared = compare_with_pillow(contents, data, 224, flags)
    return flags.conclude(compared.ratio, compared.rounds)


if __name__ == "__main__":
    sys.exit(call(main, sys.argv[1:], "python -m benchmarks.data"))
