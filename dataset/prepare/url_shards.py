"""Shards that img2dataset wrote: keeps the records that may be used, and adds the annotations of their rows."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from dataset.broken import BrokenRecordError, broken_record
from dataset.media.encoded import FORMATS
from dataset.prepare.counts import Counts
from dataset.prepare.declarations import Annotations
from dataset.prepare.file_jobs import FileJob
from dataset.prepare.img2dataset import place_shard
from dataset.prepare.line_shards import WRONG_VALUE
from dataset.prepare.output_folder import json_line
from dataset.prepare.region_records import OTHER_SIZE, same_shape
from dataset.prepare.rows import RowFile
from dataset.prepare.url_lists import ANNOTATIONS, DAMAGED, ROW_KIND, Selection
from dataset.records.schema import RawRecord
from dataset.shards.scanning import scan_shard
from dataset.shards.tars import key_of, location_of, read_record
from utils.errors import UserError
from utils.files import replacing

MAX_OTHER_SHAPE = 0.5
"""Maximum fraction of a shard's images that have a different shape than their originals. If more differ, the shard is
rejected."""


@dataclass(frozen=True)
class ShardJob(FileJob):
    """A shard to convert. ``rows`` is the file of rows by URL for shards without annotations."""

    source: Path
    selection: Selection
    rows: Path | None = None


def shard_records(path: Path, counts: Counts) -> Iterator[RawRecord]:
    """Yields the records of a shard; broken ones are counted."""
    scanned = scan_shard(path, str(path))
    with path.open("rb") as file:
        for span, detached in scanned.records(path.stat().st_size):
            counts.read["images"] += 1
            try:
                yield read_record(file, path, span, detached)
            except BrokenRecordError as error:
                counts.skip_broken(broken_record(error, location_of(file, path, span, detached)))


def record_key(record: RawRecord, shard: Path) -> str:
    """Returns the key that the members of a record have in common."""
    return key_of(record.location.removeprefix(f"{shard}:"))


def take_shard(job: ShardJob) -> Counts:
    """Puts a shard in place without the records that must not be used; runs in a worker process, on any machine.

    If the data set has annotations, the JSON members of the new shard are records made from them. Otherwise the shard is linked
    if all of its records may be used. A damaged shard is skipped and counted.

    Raises:
        UserError: most images were cropped or padded, so their boxes are wrong.
    """
    annotations, counts = job.selection.urls.annotations, Counts()
    try:
        if annotations is None:
            _place_usable(job, counts)
        else:
            _convert(job, annotations, counts)
    except (UserError, tarfile.TarError, ValueError) as error:
        job.target.unlink(missing_ok=True)
        counts = Counts()
        counts.skip(DAMAGED, str(job.source), str(error))
    if counts.skipped[OTHER_SIZE] > MAX_OTHER_SHAPE * counts.read["images"]:
        raise UserError(
            f"{counts.skipped[OTHER_SIZE]:,} of {counts.read['images']:,} images have a different shape than "
            f"their originals, first {counts.examples[OTHER_SIZE][0]}: img2dataset cropped or padded them, so "
            "the boxes do not fit",
            where=job.source,
            remedy="download them again with --resize_mode keep_ratio",
        )
    return counts


def _place_usable(job: ShardJob, counts: Counts) -> None:
    """The JSON members contain URLs, sizes, and the list's additional columns, if img2dataset kept them."""
    kept = set[str]()  # only names, since the images of a shard would fill the memory of a process
    for record in shard_records(job.source, counts):
        if _may_be_used(record, job.selection, counts):
            kept.add(record_key(record, job.source))
            counts.written.update(images=1, records=1)
    if kept:
        place_shard(job.source, job.target, kept if counts.written["images"] < counts.read["images"] else None)


def _may_be_used(record: RawRecord, selection: Selection, counts: Counts) -> bool:
    """Returns True if a record of a shard may be used; otherwise counts the reason."""
    values = {name.lower(): value for name, value in record.values.items()}
    row: dict[str, Any] = {
        ours: next((values[name] for name in names if name in values), None)
        for ours, names in selection.urls.in_shards.items()
    }
    row["url"] = str(row["url"] or "")
    if record.image is None:
        counts.skip("missing image", record.location, row["url"][:100])
        return False
    return selection.allow(row, counts, record.location)


def _convert(job: ShardJob, annotations: Annotations, counts: Counts) -> None:
    rows = RowFile(job.rows) if job.rows is not None else None
    try:
        with replacing(job.target) as part, tarfile.open(part, "w:") as new:
            for record in shard_records(job.source, counts):
                if (converted := _converted(record, job.selection, annotations, rows, counts)) is not None:
                    counts.written.update(images=1, records=1)
                    name = record.location.removeprefix(f"{job.source}:")
                    add_member(new, name, record.image or b"")
                    add_member(new, f"{key_of(name)}.json", json_line(converted).rstrip())
    finally:
        if rows is not None:
            rows.close()
    if not counts.written["images"]:
        job.target.unlink(missing_ok=True)


def add_member(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """Adds a file to a tar."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def _converted(
    record: RawRecord, selection: Selection, annotations: Annotations, rows: RowFile | None, counts: Counts
) -> dict[str, Any] | None:
    """Returns the record of an image. If the image must not be used or has no annotations, counts the reason and returns None."""
    if not _may_be_used(record, selection, counts):
        return None
    url = str(record.values.get("url") or "")
    row = row_of(record.values, annotations)
    if row is None and rows is not None:
        found = rows.find(ROW_KIND, url)
        row = json.loads(found[0].text) if found else None
    if row is None:
        counts.skip("without annotations", record.location, url[:100])
        return None
    size = _image_size(record.image or b"")
    if size is None:
        counts.skip("unreadable image", record.location, url[:100])
        return None
    if annotations.has_boxes and not _keeps_shape(record.values, size):
        original = f"{record.values['original_width']} x {record.values['original_height']}"
        counts.skip(OTHER_SIZE, record.location, f"{size[0]} x {size[1]} pixels, was {original}")
        return None
    try:
        converted = annotations.convert(row, size, counts, record.location)
    except WRONG_VALUE as error:
        counts.skip("wrong type", record.location, f"{type(error).__name__}: {error}")
        return None
    return None if converted is None else {**converted, "url": url}


def row_of(values: Mapping[str, Any], annotations: Annotations) -> Mapping[str, Any] | None:
    """Returns the columns of annotations in a JSON member of img2dataset, from the JSON text of our lists or from the official
    columns. Returns None if the member has neither."""
    if isinstance(text := values.get(ANNOTATIONS), str):
        try:
            row = json.loads(text)
        except ValueError:
            return None
        return row if isinstance(row, dict) else None
    lower = {name.lower(): value for name, value in values.items()}
    return lower if all(name in lower for name in annotations.columns) else None


def has_annotations(shard: Path, annotations: Annotations) -> bool:
    """Returns True if the first record of a shard has the columns of the annotations."""
    first = next(shard_records(shard, Counts()), None)
    return first is not None and row_of(first.values, annotations) is not None


def _image_size(content: bytes) -> tuple[int, int] | None:
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as header:
            return header.size
    except Exception:  # Pillow's readers raise many types of errors on malformed bytes
        return None


def _keeps_shape(values: Mapping[str, Any], size: tuple[int, int]) -> bool:
    """Returns True if an image has the shape of its original, which img2dataset records. img2dataset may also leave images
    unchanged."""
    width, height = values.get("original_width"), values.get("original_height")
    if not isinstance(width, int) or not isinstance(height, int) or min(width, height) < 1:
        return True
    return same_shape((width, height), size)
