"""The form of boxes in a sample of the annotations as they stand there, before training reads them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from dataset.formats.annotations import ImageFiles, Row, images_folder, read_rows
from dataset.media.encoded import EncodedImage, for_boxes
from dataset.records.box_form import look_like_corners, outside_images
from dataset.records.schema import Box, ImageKeys, RawRecord, RegionRecord, parse_region_record
from dataset.shards.readers import Shards
from tasks.checks import findings_in_regions, findings_of_relative
from tasks.grounding import GroundingConfig
from tasks.pretrain import PretrainConfig
from tools.doctor.findings import NotCheckedError, Report
from tools.doctor.subject import Subject
from utils.findings import Finding

RECORDS = 300
CORNERS = (
    "records hold [x, y, width, height]: where yours hold [x1, y1, x2, y2], write [x1, y1, x2 - x1, y2 - y1] instead"
)


class RawBox(NamedTuple):
    """A box as it stands in a record, and the (width, height) of its image; None if that cannot be read."""

    box: Box
    size: tuple[int, int] | None
    place: str


def check_boxes(subject: Subject, report: Report) -> None:
    """Boxes that are relative, or corners; nothing for tasks without boxes."""
    config: Any = subject.config
    split: Any
    if isinstance(config, GroundingConfig):
        key, split = "data.train", config.data.train
    elif isinstance(config, PretrainConfig) and config.data.regions is not None:
        key, split = "data.regions", config.data.regions
    else:
        return
    with report.check("boxes"):
        subject.require_inputs(key)
        boxes = list(_sampled(subject, split, key))
        if not boxes:
            regions = getattr(subject.training, "regions", None)
            if regions is None or not report.add("boxes", findings_in_regions(regions)):
                raise NotCheckedError(f"{key} has no boxes that can be read")
            return
        findings = findings_in_boxes(boxes, key)
        report.add("boxes", findings, f"{len(boxes):,} of {key}: x, y, width, height in pixels of their images")


def findings_in_boxes(boxes: list[RawBox], key: str) -> list[Finding]:
    """What is wrong with the form of boxes."""
    if relative := findings_of_relative([(each.box, each.place) for each in boxes], key):
        return relative
    sized = [each for each in boxes if each.size is not None]
    if not sized:
        return []
    numbers, sizes = np.array([each.box for each in sized]), np.array([each.size for each in sized])
    if not look_like_corners(numbers, sizes):
        return []
    outside = outside_images(numbers, sizes)
    example = sized[int(outside.argmax())]
    fact = (
        f"boxes look like x1, y1, x2, y2: {int(outside.sum()):,} of {len(sized):,} reach out of their image as x, y, width, "
        f"height, and nearly all fit as corners, as {list(example.box)} in an image of {example.size} at {example.place}"
    )
    return [Finding("warning", key, fact, CORNERS)]


def _sampled(subject: Subject, split: Any, key: str) -> Iterator[RawBox]:
    rng = np.random.default_rng(subject.config.seed)
    if isinstance(subject.config, PretrainConfig):
        yield from _of_shards(subject, split, rng)
    elif split.format == "records":
        yield from _of_rows(split.annotations, split.images, key, rng)
    elif subject.training is not None:
        items = subject.training.items
        for index in _chosen(len(items), rng):
            yield RawBox(items[index].box, items[index].size, items[index].place)


def _chosen(count: int, rng: np.random.Generator) -> list[int]:
    return sorted(rng.choice(count, min(RECORDS, count), replace=False).tolist())


def _of_rows(path: str, images: str | None, key: str, rng: np.random.Generator) -> Iterator[RawBox]:
    rows = [row for row in read_rows(path, key) if isinstance(row, Row)]
    files, keys = ImageFiles(images_folder(images, path)), ImageKeys(image_is="path")
    for index in _chosen(len(rows), rng):
        raw = RawRecord(rows[index].values, rows[index].place, files.folder)
        yield from _boxes_of(partial(parse_region_record, raw, keys, ""), lambda record: files.size(record.image))


def _of_shards(subject: Subject, stream: Any, rng: np.random.Generator) -> Iterator[RawBox]:
    data, keys = subject.config.data, stream.keys()
    shards = Shards(stream.paths, key="data.regions.files", index_folder=data.cache_index, remote=data.remote)

    def size(record: RegionRecord) -> tuple[int, int]:
        shape = EncodedImage(record.image.load(), data.max_pixels, record.place, for_boxes(data.pixels)).shape
        return shape[2], shape[1]

    for index in _chosen(len(shards), rng):
        read = partial(shards.read, index)
        yield from _boxes_of(lambda read=read: parse_region_record(read(), keys, stream.caption_key), size)  # type: ignore[misc]


def _boxes_of(read: Callable[[], RegionRecord], size: Callable[[RegionRecord], tuple[int, int]]) -> Iterator[RawBox]:
    """The boxes of a record; none of one that cannot be read, and no size of an image that cannot: the sample counts these."""
    try:
        record = read()
    except Exception:
        return
    try:
        known = size(record)
    except Exception:
        known = None
    yield from (RawBox(element.box, known, record.place) for element in record.elements)
