"""Checks the format of boxes in a sample of the raw annotations, before training reads them."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from dataset.formats.annotations import ImageFiles, Row, images_folder, read_rows
from dataset.media.encoded import FORMATS
from dataset.media.orientation import exif_orientation
from dataset.media.sources import ImageSource
from dataset.records.box_form import fit_as_corners, fraction_on_rotated_view, look_like_corners, outside_images
from dataset.records.schema import Box, ImageKeys, ImageRecord, RawRecord, parse_region_record
from dataset.shards.readers import Shards
from tasks.checks import NotCheckedError, findings_in_regions, findings_of_relative
from tasks.config import GroundingConfig, PretrainConfig
from tools.doctor.findings import Report
from tools.doctor.subject import Subject
from utils.files import open_regular
from utils.findings import Finding

RECORDS = 300
CORNERS_REMEDY = (
    "records contain [x, y, width, height]: if yours contain [x1, y1, x2, y2], write [x1, y1, x2 - x1, y2 - y1] instead"
)
STORED_REMEDY = "check that the boxes were drawn on images that were not rotated (docs/records.md#pixels)"
ROTATED_REMEDY = (
    "the boxes were drawn on the rotated view: keep the boxes and save the images rotated, without an orientation "
    "(PIL.ImageOps.exif_transpose), or rotate the boxes back to the stored pixels"
)


class RawBox(NamedTuple):
    """A box as written in a record, with the ``size`` (width, height) and the EXIF orientation of its stored image. ``size`` is
    None if the image cannot be read."""

    box: Box
    size: tuple[int, int] | None
    location: str
    orientation: int = 1


def check_boxes(subject: Subject, report: Report) -> None:
    """Reports boxes that are relative to the image or given as corners. Tasks without boxes are not checked."""
    config: Any = subject.config
    split: Any
    if isinstance(config, GroundingConfig):
        key, split = "data.train", config.data.train
    elif isinstance(config, PretrainConfig) and config.data.regions is not None:
        key, split = "data.regions", config.data.regions
    else:
        return
    subject.require_inputs(key)
    boxes = list(_sampled_boxes(subject, split, key))
    if not boxes:
        regions = getattr(subject.training, "regions", None)
        if regions is None or not report.add("boxes", findings_in_regions(regions)):
            raise NotCheckedError(f"{key} has no boxes that can be read")
        return
    findings = findings_in_boxes(boxes, key)
    report.add("boxes", findings, f"{len(boxes):,} of {key}: x, y, width, height in pixels of their images")


def findings_in_boxes(boxes: list[RawBox], key: str) -> list[Finding]:
    """Returns findings about the format of boxes."""
    if relative := findings_of_relative([(each.box, each.location) for each in boxes], key):
        return relative
    sized = [each for each in boxes if each.size is not None]
    if not sized:
        return []
    numbers, sizes = np.array([each.box for each in sized]), np.array([each.size for each in sized])
    orientations = np.array([each.orientation for each in sized])
    outside = outside_images(numbers, sizes)
    first = sized[int(outside.argmax())]
    example = f"{list(first.box)} in an image of {first.size} at {first.location}"
    corners = (outside & fit_as_corners(numbers, sizes)).sum() / max(1, outside.sum())
    rotated = fraction_on_rotated_view(numbers, sizes, orientations)
    findings = _orientation_findings(sized, outside, rotated if rotated > max(0.5, corners) else 0.0, example, key)
    if look_like_corners(numbers, sizes) and corners > rotated:
        fact = (
            f"boxes look like x1, y1, x2, y2: {int(outside.sum()):,} of {len(sized):,} extend beyond their image as "
            f"x, y, width, height, and nearly all fit as corners, such as {example}"
        )
        findings.append(Finding("warning", key, fact, CORNERS_REMEDY))
    return findings


def _orientation_findings(
    boxes: list[RawBox], outside: np.ndarray, rotated: float, example: str, key: str
) -> list[Finding]:
    """Returns the finding for images with an EXIF orientation.

    Args:
        rotated: the fraction of the boxes ``outside`` the stored images that lie inside the rotated images, or 0 if rotation does
            not explain them.
    """
    images = {each.location: each.orientation for each in boxes}
    count = sum(orientation > 1 for orientation in images.values())
    if not count:
        return []
    fact = f"{count:,} of {len(images):,} images with boxes have an EXIF orientation; boxes refer to the stored pixels"
    if not rotated:
        return [Finding("warning", key, fact, STORED_REMEDY)]
    fact += (
        f", but {rotated:.0%} of the {int(outside.sum()):,} boxes that extend beyond the stored image lie inside the "
        f"rotated image, such as {example}"
    )
    return [Finding("warning", key, fact, ROTATED_REMEDY)]


def _sampled_boxes(subject: Subject, split: Any, key: str) -> Iterator[RawBox]:
    rng = np.random.default_rng(subject.config.seed)
    if isinstance(subject.config, PretrainConfig):
        yield from _from_shards(subject, split, rng)
    elif split.format == "records":
        yield from _from_rows(split.annotations, split.images, key, rng)
    elif subject.training is not None:
        items = subject.training.items
        for index in _random_indices(len(items), rng):
            size, orientation = _stored_size(items[index].image)
            yield RawBox(items[index].box, size, items[index].location, orientation)


def _random_indices(count: int, rng: np.random.Generator) -> list[int]:
    return sorted(rng.choice(count, min(RECORDS, count), replace=False).tolist())


def _from_rows(path: str, images: str | None, key: str, rng: np.random.Generator) -> Iterator[RawBox]:
    rows = [row for row in read_rows(path, key) if isinstance(row, Row)]
    files, keys = ImageFiles(images_folder(images, path)), ImageKeys(image_is="path")
    for index in _random_indices(len(rows), rng):
        raw = RawRecord(rows[index].values, rows[index].location, files.folder)
        yield from _boxes_of(partial(parse_region_record, raw, keys, ""))


def _from_shards(subject: Subject, stream: Any, rng: np.random.Generator) -> Iterator[RawBox]:
    data, keys = subject.config.data, ImageKeys.of(stream)
    shards = Shards(stream.paths, key="data.regions.files", index_folder=data.cache_index, remote=data.remote)

    for index in _random_indices(len(shards), rng):
        read = partial(shards.read, index)
        yield from _boxes_of(lambda read=read: parse_region_record(read(), keys, stream.caption_key))  # type: ignore[misc]


def _boxes_of(read: Callable[[], ImageRecord]) -> Iterator[RawBox]:
    """Yields the boxes of a record, or nothing if the record cannot be read. If the image cannot be read, the boxes have no size.
    :func:`~tools.doctor.sample.check_sample` counts these records and images."""
    try:
        record = read()
    except Exception:
        return
    size, orientation = _stored_size(record.image)
    boxes = (box for element in record.elements for box in element.boxes)
    yield from (RawBox(box, size, record.location, orientation) for box in boxes)


def _stored_size(image: ImageSource) -> tuple[tuple[int, int] | None, int]:
    """Returns the (width, height) of the stored pixels and the EXIF orientation, from the file header; (None, 1) if it cannot be
    read."""
    try:
        file = open_regular(image.path) if image.path is not None else io.BytesIO(image.load())
        with file, Image.open(file, formats=FORMATS) as header:
            # Pillow rotates TIFF files itself when it decodes them.
            exif = b"" if header.format == "TIFF" else header.info.get("exif") or b""
            return header.size, exif_orientation(exif)
    except Exception:  # Pillow's readers raise many types of errors for malformed bytes
        return None, 1
