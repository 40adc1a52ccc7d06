"""RefCOCO, RefCOCO+ and RefCOCOg: the training phrases of all three data sets as region records, one record for each image."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dataset.broken import BrokenRecordError, broken_record
from dataset.formats.refcoco import Instances
from dataset.prepare.cleaning import clamped_box, cleaned_texts
from dataset.prepare.counts import Counts
from dataset.prepare.declarations import AnnotatedMedia, DataSet, Files, Found, Records, Source
from dataset.prepare.held_out import COCO_SPLITS, SPLITS, TRAINING, read_references
from dataset.prepare.json_pieces import official_pieces
from dataset.prepare.options import Options
from dataset.prepare.raw_folder import RawFile, RawFolder
from dataset.prepare.region_records import region_record
from dataset.prepare.sets.coco import IMAGES, image_names
from dataset.records.schema import Box
from utils.errors import UserError

FAMILY = ("refcoco", "refcoco+", "refcocog")
INSTANCES = "instances.json"
SPLIT = "train2014"
"""The split of COCO that has all images."""


def _files(raw: RawFolder) -> Files:
    """Finds the phrases and the boxes of each set of the family that exists."""
    files: dict[str, RawFile] = {}
    for name in FAMILY:
        references = SPLITS[name].locate(raw)
        if references is None:
            continue
        instances = raw.find(INSTANCES, below=name)
        if instances is None:
            raise UserError(
                f"no {INSTANCES} is in the folder {name} next to it", where=references, remedy="this file has the boxes"
            )
        files |= {f"{name} phrases": references, f"{name} boxes": instances}
    if not files:
        roots = ", ".join(map(str, raw.roots))
        raise UserError(f"no refs(unc).p or refs(umd).p in a folder {', '.join(FAMILY)}", where=roots)
    return files


def _read(files: Files, scratch: Path, options: Options) -> Source:
    counts = Counts()
    images: dict[int, tuple[tuple[int, int], list[tuple[str, list[Any], Any]]]] = {}
    """Size, and location, phrases and box of each reference."""
    for name in FAMILY:
        if f"{name} phrases" not in files:
            continue
        instances = read_instances(files[f"{name} boxes"])
        for reference in read_references(files[f"{name} phrases"]):
            location = reference.row.location
            counts.read["references"] += 1
            if reference.split not in TRAINING:
                counts.skip("not in the training split", location, reference.split)
                continue
            try:
                boxes, phrases, number = instances.boxes_of(reference), reference.expressions, reference.image_id
            except BrokenRecordError as error:
                counts.skip_broken(broken_record(error, reference.row.location))
                continue
            images.setdefault(number, (instances.sizes[number], []))[1].extend(
                (location, phrases, box) for box in boxes
            )
    annotated = [
        AnnotatedMedia(image_names(number, SPLIT), described[0][0], (number, size, described))
        for number, (size, described) in sorted(images.items())
    ]
    return Source(annotated, _record, len(annotated), counts)


def read_instances(file: RawFile) -> Instances:
    """Reads the boxes of the references, and the sizes of their images.

    Raises:
        UserError: if the file cannot be read, or has no boxes or images.
    """
    instances = Instances()
    with official_pieces(file, "the RefCOCO family", "annotations", "images") as pieces:
        for piece in pieces:
            instances.add(piece.section, piece.value)
    if not instances.boxes or not instances.sizes:
        raise UserError(f"{file} has no annotations or no images", remedy=f"is it {INSTANCES} of the RefCOCO family?")
    return instances


def _record(image: Found, counts: Counts) -> Iterator[dict[str, Any]]:
    size: tuple[int, int]
    number, size, described = image.values
    phrases_of: dict[Box, dict[str, None]] = {}
    for location, phrases, value in described:
        box = clamped_box(value, *size, counts, location)
        texts = cleaned_texts(phrases, counts, f"{location}: sentences") if box is not None else []
        if box is not None and texts:  # two sets may describe the same box
            phrases_of.setdefault(box, {}).update(dict.fromkeys(texts))
    elements = [{"caption": list(texts), "bb": box, "grain": "region"} for box, texts in phrases_of.items()]
    made = {"boxes": len(elements), "phrases": sum(len(texts) for texts in phrases_of.values())}
    return region_record(image, size, elements, made, counts, coco_id=number)


REFCOCO = DataSet(
    name="refcoco",
    title="RefCOCO, RefCOCO+, RefCOCOg",
    home="github.com/lichengunc/refer",
    licence="Apache 2.0 (the code); images under the terms of Flickr",
    files={
        "refcoco/refs(unc).p, refcoco+/refs(unc).p, refcocog/refs(umd).p": "phrases; no code in them is run",
        "refcoco/instances.json, refcoco+/instances.json, refcocog/instances.json": "boxes",
        "train2014/": "COCO's images",
    },
    sizes={},
    makes=(
        Records(
            "refcoco",
            "an image, and an element for each box with its phrases in all three data sets",
            files=_files,
            read=_read,
            image_files=IMAGES,
        ),
    ),
    required=COCO_SPLITS,
    group="4m",
)
