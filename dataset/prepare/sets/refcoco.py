"""RefCOCO, RefCOCO+ and RefCOCOg: the training phrases of all three data sets as region records, one record for each image."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from dataset.prepare.cleaning import annotated_size, cleaned_texts, placed_box
from dataset.prepare.counts import Counts
from dataset.prepare.held_out import COCO_SPLITS, SPLITS, TRAINING, read_references
from dataset.prepare.json_pieces import json_pieces
from dataset.prepare.options import Options
from dataset.prepare.raw_folder import RawFile, RawFolder
from dataset.prepare.region_records import region_record
from dataset.prepare.sets.base import AnnotatedMedia, DataSet, Files, Found, Records, Source, checked
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
        boxes, sizes, _ = read_instances(files[f"{name} boxes"])
        references = files[f"{name} phrases"]
        for index, values in enumerate(read_references(references)):
            location = f"{references}[{index}]"
            counts.read["references"] += 1
            if values.get("split") not in TRAINING:
                counts.skip("not in the training split", location, str(values.get("split")))
                continue
            number, annotation, sentences = values.get("image_id"), values.get("ann_id"), values.get("sentences")
            box = boxes.get(annotation) if isinstance(annotation, int) else None
            if not isinstance(number, int) or number not in sizes or box is None or not isinstance(sentences, list):
                detail = f"image_id {number}, ann_id {annotation}: no box or no sentences"
                counts.skip("missing key", location, detail)
                continue
            phrases = [sentence.get("sent") if isinstance(sentence, dict) else None for sentence in sentences]
            images.setdefault(number, (sizes[number], []))[1].append((location, phrases, box))
    annotated = [
        AnnotatedMedia(image_names(number, SPLIT), described[0][0], (number, size, described))
        for number, (size, described) in sorted(images.items())
    ]
    return Source(annotated, _record, len(annotated), counts)


def read_instances(file: RawFile) -> tuple[dict[Any, Any], dict[Any, tuple[int, int]], dict[Any, Any]]:
    """Returns boxes by id of the annotation, sizes by id of the image, and ids of the image by id of the annotation."""
    boxes: dict[Any, Any] = {}
    images: dict[Any, Any] = {}
    sizes: dict[Any, tuple[int, int]] = {}

    def add(section: str, value: Any) -> None:
        if section == "annotations":
            boxes[value["id"]] = value["bbox"]
            images[value["id"]] = value.get("image_id")
        elif section == "images":
            sizes[value["id"]] = annotated_size(value)

    with file.open() as stream:
        for piece in json_pieces(stream, str(file)):
            checked(partial(add, piece.section, piece.value), f"{file}: {piece.section}[{piece.key}]", "COCO")
    if not boxes or not sizes:
        raise UserError(f"{file} has no annotations or no images", remedy=f"is it {INSTANCES} of the RefCOCO family?")
    return boxes, sizes, images


def _record(image: Found, counts: Counts) -> Iterator[dict[str, Any]]:
    size: tuple[int, int]
    number, size, described = image.values
    phrases_of: dict[Box, dict[str, None]] = {}
    for location, phrases, value in described:
        box = placed_box(value, *size, counts, location)
        texts = cleaned_texts(phrases, counts, f"{location}: sentences") if box is not None else []
        if box is not None and texts:  # two sets may describe the same box
            phrases_of.setdefault(box, {}).update(dict.fromkeys(texts))
    elements = [{"caption": list(texts), "bb": box, "grain": "region"} for box, texts in phrases_of.items()]
    made = {"boxes": len(elements), "phrases": sum(len(texts) for texts in phrases_of.values())}
    return region_record(image, size, elements, made, counts, coco_id=number)


REFCOCO = DataSet(
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
        Records("refcoco", "an image and the phrases of its regions", files=_files, read=_read, image_files=IMAGES),
    ),
    required=COCO_SPLITS,
)
