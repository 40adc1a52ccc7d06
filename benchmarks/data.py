"""The data path of pre-training, on one core: ``python -m benchmarks.data``.

Makes JPEG files of COCO's sizes in a temporary folder (:mod:`benchmarks.records`) and times what a run does with them: each
stage alone, through the functions that the run calls, the whole of the stream of image-text pairs, and the loaders of
``configs/pretrain/base_4m.yaml`` with pairs and regions, in its own process and with two workers, and of
``configs/pretrain/base_1b_stage2.yaml``, whose videos are lists of pictures or files. Times are those of the
processor (``time.process_time``), so that other programs disturb them less; the files are in the system's cache. Then what
the configs need: the pictures a second of their step, whose time is the model's operations over an assumed share of a GPU's peak,
beside what eight such cores give (pre-training: the loaders with two workers; the other tasks: pairs, or videos of as many
frames, at their size in pixels, each core as fast as one of two).

The last line is the median ratio of two times on the same files and the same crops, in turn: Pillow's decoding, cropping and
bicubic resizing to a uint8 tensor, over ours.
"""

from __future__ import annotations

import argparse
import io
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as pillow

from benchmarks.loader_rates import CONFIG, SMALL, WHOLE, Made, print_loaders, print_needs
from benchmarks.records import write_records, write_videos
from dataset.media.augment import RandAugment, draw_crop, hflip, resize, stack_views
from dataset.media.encoded import Picture, crop
from dataset.prepare.folders import whole_number
from dataset.records.schema import parse_image_record
from dataset.tasks.pretrain import DataConfig, PretrainBatches
from dataset.tasks.streams.pairs import ImageStream
from engine.devices import ASSUMED_UTILISATION, PEAKS
from utils.flags import positive, positive_real, share

_ODD = 0.5
"""Pillow and torch round a bicubic resize differently: by less than this on average, in grey levels."""

Part = tuple[int, int, int, int]
"""Top, left, height and width."""


def seconds(run: Callable[[Any], Any], items: Iterable[Any]) -> tuple[float, list[Any]]:
    """Processor time of ``run`` on all items, and what it gave."""
    started = time.process_time()
    made = [run(item) for item in items]
    return time.process_time() - started, made


class Laps:
    """Processor time by what it went to."""

    def __init__(self) -> None:
        self.took: dict[str, float] = {}
        self.at = time.process_time()

    def lap(self, name: str) -> None:
        """Count the time since the lap before."""
        now = time.process_time()
        self.took[name] = self.took.get(name, 0.0) + now - self.at
        self.at = now


def time_stages(stream: ImageStream, size: int) -> dict[str, float]:
    """Seconds of a micro-batch of pairs by stage: what :meth:`ImageStream.rows` does, taken apart."""
    source, text, config = stream.sources[0], stream.text, stream.view.config
    augment = RandAugment(config.rand_augment_ops, config.rand_augment_magnitude)
    views, texts, laps = [], [], Laps()
    for index, rng in source.samples(0):
        laps.lap("order")
        record = parse_image_record(source.shards.read(index), stream.keys, stream.caption_keys[0])
        content = record.image.load()
        laps.lap("read")
        chosen = text.choose(record.captions, rng, record.place)
        laps.lap("tokenise and mask")
        picture = Picture(content, stream.view.max_pixels, record.place)
        part = crop(picture, *draw_crop(*picture.shape[1:], config, rng))
        laps.lap("decode")
        view = resize(part, size)
        laps.lap("resize")
        view = hflip(view) if rng.random() < config.flip else view
        laps.lap("flip")
        views.append(augment(view, rng))
        laps.lap("RandAugment")
        texts.append(text.encode(chosen, rng))
        laps.lap("tokenise and mask")
    stack_views(views)
    text.collate(texts)
    laps.lap("collate")
    return laps.took


def print_stages(maker: PretrainBatches, size: int, rounds: int) -> None:
    """Median times of the stages, and of the stream that is made of them."""
    stream = maker.images
    assert stream is not None
    maker.make(0)
    measured = [(time_stages(stream, size), seconds(maker.make, [0])[0]) for _ in range(rounds)]
    took = {name: statistics.median(stages[name] for stages, _ in measured) for name in measured[0][0]}
    took["stages together"] = together = sum(took.values())
    took["the stream itself"] = statistics.median(whole for _, whole in measured)
    sys.stdout.write(f"{'stage':20}{'ms an image':>12}{'images/s a core':>17}{'share':>8}\n")
    for name, value in took.items():
        each = value / maker.rows_per_batch
        sys.stdout.write(f"{name:20}{1e3 * each:12.3f}{1 / each:17,.0f}{value / together:8.1%}\n")


def print_entropy_decoding(contents: Sequence[bytes]) -> None:
    """What any decoder has to do: nearly all that is left where Pillow decodes to an eighth of the size."""

    def decode_an_eighth(content: bytes) -> None:
        image = Image.open(io.BytesIO(content))
        image.draft("RGB", (image.width // 8, image.height // 8))
        image.load()

    rate = len(contents) / seconds(decode_an_eighth, contents)[0]
    sys.stdout.write(f"decode to an eighth of the size, which is mostly entropy decoding: {rate:,.0f} images/s\n")


def usual_way(content: bytes, part: Part, size: int) -> Tensor:
    """Decoding, cropping and resizing by Pillow, as torchvision's transforms do it."""
    image = Image.open(io.BytesIO(content)).convert("RGB")
    return pillow.pil_to_tensor(pillow.resized_crop(image, *part, [size, size], InterpolationMode.BICUBIC))


def ratios(contents: Sequence[bytes], data: DataConfig, size: int, rounds: int) -> list[float]:
    """Time of the usual way over ours on the same files and crops, once a round."""
    assert data.images is not None
    config, found = data.images.augment, []
    opened = [Picture(content, data.max_pixels, "") for content in contents]
    parts = [draw_crop(*each.shape[1:], config, np.random.default_rng(n)) for n, each in enumerate(opened)]

    def ours(number: int) -> Tensor:
        return resize(crop(Picture(contents[number], data.max_pixels, ""), *parts[number]), size)

    def usual(number: int) -> Tensor:
        return usual_way(contents[number], parts[number], size)

    for number in range(rounds + 1):
        usual_s, expected = seconds(usual, range(len(contents)))
        ours_s, given = seconds(ours, range(len(contents)))
        difference = max(float((a.float() - b.float()).abs().mean()) for a, b in zip(expected, given, strict=True))
        assert difference < _ODD, f"pixels differ by {difference:.2f} on average"
        if number:  # the first round warms up
            found.append(usual_s / ours_s)
            sys.stdout.write(
                f"decode + crop: Pillow {len(contents) / usual_s:,.0f} images/s, ours {len(contents) / ours_s:,.0f} images/s, "
                f"ratio {found[-1]:.2f}\n"
            )
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark and print its ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=positive, default=5, help="measurements of each")
    parser.add_argument("--small", action="store_true", help="few and small pictures: a check that it runs")
    parser.add_argument(
        "--quality", type=whole_number(1, 100), default=90, help="of the JPEG files, 1 to 100 (90: about COCO's 160 kB)"
    )
    parser.add_argument("--gpu", choices=list(PEAKS), default="h100", help="whose steps the loader has to keep up with")
    parser.add_argument(
        "--utilisation",
        type=share,
        default=ASSUMED_UTILISATION,
        help=f"assumed share of its peak ({ASSUMED_UTILISATION}, as in run.py plan)",
    )
    parser.add_argument("--step-images-per-s", type=positive_real, help="of the step, where it was measured")
    flags = parser.parse_args(argv)
    scale = SMALL if flags.small else WHOLE
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made = Made(folder, scale)
        mean = write_records(folder, scale.pictures, scale.records, divide=scale.divide, quality=flags.quality)
        sys.stdout.write(f"{scale.pictures} JPEG files of {mean / 1e3:.0f} kB on average, one thread\n")
        file, frame = write_videos(folder, scale.videos, scale.records, seconds=scale.seconds, divide=scale.divide)
        sys.stdout.write(
            f"{scale.videos} video files of {scale.seconds} s and {file / 1e3:.0f} kB, as lists {frame / 1e3:.0f} kB a frame\n"
        )
        data = made.config(CONFIG).data
        contents = [path.read_bytes() for path in sorted(folder.glob("*.jpg"))]
        print_stages(made.batches(data, regions=None), 224, flags.rounds)
        print_needs(print_loaders(made, flags.rounds), flags)
        print_entropy_decoding(contents)
        found = ratios(contents, data, 224, flags.rounds)
    sys.stdout.write(f"ratio: {statistics.median(found):.2f}\n")


if __name__ == "__main__":
    main()
