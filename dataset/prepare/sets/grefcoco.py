"""gRefCOCO (Liu et al., 2023, "GRES"): expressions about one object, several objects, or none, on images of COCO.

``gres_model/data/datasets/grefer.py`` of github.com/henghuiding/ReLA reads the files, and
``mdetr/scripts/fine-tuning/grefexp_coco_format.py`` of github.com/henghuiding/gRefCOCO converts them. ``grefs(unc).json`` is an
array like the references of RefCOCO, in which ``ann_id`` is a list; [-1] means that the image shows no such object. The boxes are
in ``instances.json``. All images are from COCO train2014.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from dataset.broken import BrokenRecordError, broken_record
from dataset.formats.refcoco import IMAGE_NAME, NO_TARGET, Reference
from dataset.image_ids import id_number
from dataset.prepare.cleaning import clamped_box, cleaned_texts
from dataset.prepare.counts import Counts
from dataset.prepare.declarations import AnnotatedMedia, DataSet, Files, Found, Records, Source, Splits
from dataset.prepare.held_out import COCO_SPLITS, TRAINING
from dataset.prepare.json_pieces import official_pieces
from dataset.prepare.options import Options
from dataset.prepare.raw_folder import RawFolder
from dataset.prepare.region_records import region_record
from dataset.prepare.sets.coco import IMAGES, image_names
from dataset.prepare.sets.refcoco import INSTANCES, SPLIT, read_instances
from dataset.records.schema import Box
from utils.errors import UserError

REFERENCES = "grefs(unc).json"
EVALUATION = ("val", "testA", "testB")


class Expressions(NamedTuple):
    """Expressions about the same objects. ``boxes`` are the boxes in the file; the list is empty if the image shows no such
    object."""

    location: str
    image: int
    split: str
    size: tuple[int, int]
    expressions: list[Any]
    boxes: list[Any]


def _files(raw: RawFolder) -> Files:
    references = raw.find(REFERENCES)
    if references is None:
        raise UserError(f"there is no {REFERENCES}", where=", ".join(map(str, raw.roots)))
    instances = raw.find(INSTANCES, below="grefcoco") or raw.sibling(references.path, INSTANCES)
    if instances is None:
        raise UserError(
            f"found no {INSTANCES}, which has the boxes, next to it or in a folder grefcoco", where=references
        )
    return {"references": references, "boxes": instances}


def _references(files: Files, counts: Counts) -> Iterator[Expressions]:
    """Yields the references of all splits, and counts the references that cannot be used."""
    instances = read_instances(files["boxes"])
    with official_pieces(files["references"], "gRefCOCO") as pieces:
        for piece in pieces:
            counts.read["references"] += 1
            if not isinstance(piece.value, dict):
                counts.skip("wrong type", piece.location, f"{piece.text[:40]} is not an object")
                continue
            reference = Reference(piece.row)
            try:
                boxes, expressions, image = instances.boxes_of(reference), reference.expressions, reference.image_id
            except BrokenRecordError as error:
                counts.skip_broken(broken_record(error, reference.row.location))
                continue
            image_of = {each: instances.image_of.get(each) for each in reference.annotation_ids if each != NO_TARGET}
            other = next((each for each, of in image_of.items() if id_number(of) != image), None)
            if other is not None:
                detail = f"ann_id {other} is of image {image_of[other]}, not of image {image}"
                counts.skip("annotation of another image", piece.location, detail)
                continue
            yield Expressions(piece.location, image, reference.split, instances.sizes[image], expressions, boxes)


def _read(files: Files, scratch: Path, options: Options) -> Source:
    counts = Counts()
    references = list(_references(files, counts))
    evaluated: dict[int, str] = {}
    for each in references:
        if each.split not in TRAINING:
            evaluated.setdefault(each.image, each.split)
    images: dict[int, list[Expressions]] = {}
    for each in references:
        if each.split not in TRAINING:
            counts.skip("not in the training split", each.location, each.split)
        elif each.image in evaluated:
            counts.skip(f"held out by gRefCOCO {evaluated[each.image]}", each.location, f"image {each.image}")
        else:
            images.setdefault(each.image, []).append(each)
    annotated = [
        AnnotatedMedia(image_names(number, SPLIT), described[0].location, (number, described))
        for number, described in sorted(images.items())
    ]
    return Source(annotated, _record, len(annotated), counts)


def _placed(reference: Expressions, counts: Counts) -> list[Box] | None:
    """Returns the boxes of a reference. If one of them cannot be used, counts the reason and returns None, since the remaining
    boxes do not cover everything that the expressions refer to."""
    boxes = [clamped_box(box, *reference.size, counts, reference.location) for box in reference.boxes]
    return None if None in boxes else list(dict.fromkeys(box for box in boxes if box is not None))


def _element(boxes: list[Box], texts: list[str]) -> dict[str, Any]:
    return {"caption": texts, "bb": boxes[0] if len(boxes) == 1 else boxes, "grain": "region"}


def _record(image: Found, counts: Counts) -> Iterator[dict[str, Any]]:
    number, described = image.values
    texts_of: dict[tuple[Box, ...], dict[str, None]] = {}
    for each in described:
        boxes = _placed(each, counts)
        texts = cleaned_texts(each.expressions, counts, f"{each.location}: sentences") if boxes is not None else []
        if boxes is not None and texts:
            texts_of.setdefault(tuple(sorted(boxes)), {}).update(dict.fromkeys(texts))
    made = Counter[str]()
    for meant, expressions in texts_of.items():
        made["boxes"] += len(meant)
        made["phrases" if meant else "absent phrases"] += len(expressions)
    elements = [_element(list(meant), list(expressions)) for meant, expressions in texts_of.items()]
    yield from region_record(image, described[0].size, elements, made, counts, coco_id=number)


def _read_evaluation(
    files: Files, folder: Path, options: Options, counts: Counts
) -> Mapping[str, Iterator[Mapping[str, Any]]]:
    read = Counts()
    references = list(_references(files, read))
    splits = [split for split in EVALUATION if any(each.split == split for each in references)]
    if not splits:
        raise UserError(f"{files['references']} has no expressions of {', '.join(EVALUATION)}")
    counts.add(read)
    return {split: _evaluated([each for each in references if each.split == split], counts) for split in splits}


def _evaluated(references: list[Expressions], counts: Counts) -> Iterator[Mapping[str, Any]]:
    """Yields a record for each reference, with the expressions as published."""
    for each in references:
        boxes = _placed(each, counts)
        texts = [text.strip() for text in each.expressions if isinstance(text, str) and text.strip()]
        if len(texts) < len(each.expressions):
            counts.skip("empty text", each.location)
        if boxes is not None and texts:
            counts.written["expressions"] += len(texts)
            yield {"image": IMAGE_NAME.format(each.image), "elems": [_element(boxes, texts)], "coco_id": each.image}


_TITLE, _HOME = "gRefCOCO", "github.com/henghuiding/gRefCOCO"
_LICENCE = "none stated in the repository; images under the terms of Flickr"
_OFFICIAL = {
    f"grefcoco/{REFERENCES}": "expressions, with the ids of their objects",
    f"grefcoco/{INSTANCES}": "boxes",
    "train2014/": "COCO's images",
}

GREFCOCO = DataSet(
    name="grefcoco",
    title=_TITLE,
    home=_HOME,
    licence=_LICENCE,
    files=_OFFICIAL,
    sizes={},
    makes=(
        Records(
            "grefcoco",
            "an image and expressions about one, several or none of its objects",
            files=_files,
            read=_read,
            image_files=IMAGES,
        ),
    ),
    required=COCO_SPLITS,
)

GREFCOCO_EVAL = DataSet(
    name="grefcoco_eval",
    title=f"{_TITLE}, for evaluation",
    home=_HOME,
    licence=_LICENCE,
    files=_OFFICIAL,
    sizes={},
    makes=Splits(
        "grefcoco_eval",
        "val.jsonl, and testA.jsonl and testB.jsonl if the file has them: expressions about one, several or none of the objects "
        "of an image",
        files=_files,
        read=_read_evaluation,
    ),
    read_by="configs/grounding/*.yaml, with annotations: val.jsonl and COCO's train2014 in place of the official files",
)
