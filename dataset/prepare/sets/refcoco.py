"""RefCOCO, RefCOCO+ and RefCOCOg: the training phrases of all three as region records, one for each image."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from dataset.prepare.building import Work
from dataset.prepare.cleaning import cleaned_texts, placed_box
from dataset.prepare.counts import Counts
from dataset.prepare.held_out import OF_COCO, SPLITS, TRAINING, read_references
from dataset.prepare.image_finder import ImageFinder
from dataset.prepare.json_pieces import json_pieces
from dataset.prepare.raw_folder import RawFile
from dataset.prepare.sets.base import DataSet, Opened, Product, Request
from dataset.prepare.sets.coco import IMAGES, coco_jobs
from dataset.prepare.stored_size import fit_to_stored
from dataset.records.schema import Box
from utils.errors import UserError

FAMILY = ("refcoco", "refcoco+", "refcocog")
INSTANCES = "instances.json"


@dataclass
class _Image:
    """An image with its size and its references: place, phrases and box of each. All are of COCO's ``split``."""

    place: str
    size: tuple[int, int]
    references: list[tuple[str, list[Any], Any]] = field(default_factory=list)
    split: str = "train2014"


def open_references(request: Request) -> Opened:
    """Region records of all sets of the family that are there."""
    pairs: dict[str, tuple[RawFile, RawFile]] = {}
    for name in FAMILY:
        references = SPLITS[name].locate(request.raw)
        if references is None:
            continue
        instances = request.raw.find(INSTANCES, below=name)
        if instances is None:
            raise UserError(f"{references}: no {INSTANCES} is in the folder {name} beside it; it has the boxes")
        pairs[name] = (references, instances)
    if not pairs:
        raise UserError(
            f"{', '.join(map(str, request.raw.roots))}: no refs(unc).p or refs(umd).p in a folder {', '.join(FAMILY)}"
        )
    finder = ImageFinder(request.raw, request.folder, IMAGES, request.held_out, request.excluded, request.verified)

    def work(_: Path) -> Work:
        counts = Counts()
        images: dict[int, _Image] = {}
        for references, instances in pairs.values():
            _read(references, instances, images, counts)
        return Work(partial(fit_to_stored, request.folder, _records), coco_jobs(images, finder, counts), len(images))

    return Opened([file for pair in pairs.values() for file in pair], work, finder)


def _read(references: RawFile, instances: RawFile, images: dict[int, _Image], counts: Counts) -> None:
    """Add the training references of one set to their images."""
    boxes, sizes = _read_instances(instances)
    for index, values in enumerate(read_references(references)):
        place = f"{references}[{index}]"
        counts.read["references"] += 1
        if values.get("split") not in TRAINING:
            counts.leave_out("not in the training split", place, str(values.get("split")))
            continue
        number, annotation, sentences = values.get("image_id"), values.get("ann_id"), values.get("sentences")
        box = boxes.get(annotation) if isinstance(annotation, int) else None
        if not isinstance(number, int) or number not in sizes or box is None or not isinstance(sentences, list):
            counts.leave_out("missing key", place, f"image_id {number}, ann_id {annotation}: no box or no sentences")
            continue
        phrases = [sentence.get("sent") if isinstance(sentence, dict) else None for sentence in sentences]
        image = images.setdefault(number, _Image(place, sizes[number]))
        image.references.append((place, phrases, box))


def _read_instances(file: RawFile) -> tuple[dict[Any, Any], dict[Any, tuple[int, int]]]:
    """Boxes by number of the annotation, and sizes by number of the image."""
    boxes: dict[Any, Any] = {}
    sizes: dict[Any, tuple[int, int]] = {}
    with file.open() as stream:
        for piece in json_pieces(stream, str(file)):
            try:
                if piece.section == "annotations":
                    boxes[piece.value["id"]] = piece.value["bbox"]
                elif piece.section == "images":
                    sizes[piece.value["id"]] = int(piece.value["width"]), int(piece.value["height"])
            except (KeyError, TypeError, ValueError, OverflowError) as error:
                place = f"{file}: {piece.section}[{piece.key}]"
                raise UserError(f"{place} is not as in COCO's instances ({type(error).__name__}: {error})") from None
    if not boxes or not sizes:
        raise UserError(f"{file} has no annotations or no images; is it {INSTANCES} of the RefCOCO family?")
    return boxes, sizes


def _records(items: list[tuple[str, int, _Image]], counts: Counts) -> Iterator[dict[str, Any]]:
    for path, number, image in items:
        phrases_of: dict[Box, dict[str, None]] = {}
        for place, phrases, value in image.references:
            box = placed_box(value, *image.size, counts, place)
            texts = cleaned_texts(phrases, counts, f"{place}: sentences") if box is not None else []
            if box is not None and texts:  # two sets may describe the same box
                phrases_of.setdefault(box, {}).update(dict.fromkeys(texts))
        elements = [{"caption": list(texts), "bb": box, "grain": "region"} for box, texts in phrases_of.items()]
        if not elements:
            counts.leave_out("image without boxes", image.place)
            continue
        counts.made["images"] += 1
        counts.made["boxes"] += len(elements)
        counts.made["phrases"] += sum(len(element["caption"]) for element in elements)
        yield {"image": path, "size": image.size, "elems": elements, "coco_id": number}


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
    products=(Product("refcoco", "an image and the phrases of its regions", open_references),),
    required=OF_COCO,
)
