"""Reads JSON files in COCO's format: the lists ``images``, ``annotations`` and ``categories``, in any order.

A data set of objects in this format is a declaration based on :func:`read_objects`; see :mod:`dataset.prepare.sets.objects365`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from dataset.image_ids import id_number, needed_id
from dataset.prepare.cleaning import annotated_size, clamped_box, cleaned_text
from dataset.prepare.counts import Counts
from dataset.prepare.declarations import AnnotatedMedia, Files, Found, Source
from dataset.prepare.finders import MediaNames
from dataset.prepare.json_pieces import official_pieces
from dataset.prepare.options import Options
from dataset.prepare.raw_folder import RawFile
from dataset.prepare.region_records import region_record
from dataset.prepare.rows import KeyedRow, RowFile, RowFolder
from utils.errors import UserError

OBJECTS = "objects"
"""Name under which :func:`read_objects` expects the annotation file."""

ABSENT, INCOMPLETE = "neg_category_ids", "not_exhaustive_category_ids"
FEDERATED = (ABSENT, INCOMPLETE)
"""Keys in LVIS that contain the ids of categories that an image does not show, and of categories whose objects do not all have
boxes."""

_KEPT = ("caption", "category_id", "bbox")
"""The keys of an annotation that are read."""

_SHORT = 400
"""An annotation of at most this number of characters is stored unchanged."""


def read_objects(
    title: str, names_of: Callable[[str], MediaNames], files: Files, scratch: Path, options: Options
) -> Source:
    """Reads the objects of a data set for region records, one for each image.

    Args:
        title: name of the data set, to name in error messages.
        names_of: returns the ids and names of an image, given its ``file_name``.
        files: the annotation file, with the name :data:`OBJECTS`.
        scratch: folder for temporary files.
        options: the user's options.
    """
    folder = RowFolder(scratch)
    counts = folder.read(partial(rows_of, title), files, options.workers)
    rows = folder[OBJECTS]
    rows.skip_orphans("annotations", rows, "images", counts)

    def images() -> Iterator[AnnotatedMedia]:
        with folder:
            for image in rows.first("images"):
                values = image.text, rows.find("annotations", image.key)
                names = names_of(json.loads(image.text)["file_name"])
                yield AnnotatedMedia(names, image.location, values)

    return Source(images(), partial(_object_record, category_names(rows)), rows.count("images"), counts)


def _object_record(categories: Mapping[str, str], image: Found, counts: Counts) -> Iterator[dict[str, Any]]:
    shown, annotations = image.values
    size = size_of(shown)
    elements = objects_of(annotations, categories, size, counts)
    return region_record(image, size, elements, {"objects": len(elements)}, counts)


def rows_of(title: str, name: str, file: RawFile, counts: Counts) -> Iterator[KeyedRow]:
    """Yields the images, annotations and categories of a file. Annotations are counted in the unit with which ``name`` begins,
    for example as captions if it is ``captions_train2014``.

    Raises:
        UserError: the file does not have the expected form.
    """
    unit, found = name.partition("_")[0], set()
    with official_pieces(file, title) as pieces:
        for piece in pieces:
            value, location = piece.value, piece.location
            found.add(piece.section)
            if piece.section == "annotations":
                counts.read[unit] += 1
                if not isinstance(value, dict):
                    counts.skip("wrong type", location, f"{piece.text[:40]} is not an object")
                elif (image := id_number(value.get("image_id"))) is None:
                    counts.skip("missing key", location, f"image_id is {value.get('image_id')!r}")
                elif value.get("iscrowd"):
                    counts.skip("crowd", location)
                else:
                    text = piece.text
                    if len(text) > _SHORT:  # with the outline of an object
                        text = json.dumps({key: value[key] for key in _KEPT if key in value})
                    yield KeyedRow("annotations", str(image), location, text)
            elif piece.section in ("images", "categories"):
                yield (_image_row if piece.section == "images" else _category_row)(value, location)
                if piece.section == "categories" and isinstance(value.get("synonyms"), list):
                    yield KeyedRow("synonyms", str(needed_id(value["id"])), location, json.dumps(value["synonyms"]))
    needed = ["images", *(["categories"] if unit == OBJECTS else []), "annotations"]
    if missing := [section for section in needed if section not in found]:
        raise UserError(f"{file} has no list {missing[0]}", remedy=f"is it {title}'s file?")


def _image_row(value: Any, location: str) -> KeyedRow:
    """Returns the row of an image. LVIS has ``coco_url`` instead of ``file_name``, such as
    ``http://…/train2017/000000391895.jpg``, and names categories that the image does not show or does not show completely."""
    named = "file_name" in value or "coco_url" not in value
    name = value["file_name"] if named else "/".join(str(value["coco_url"]).rsplit("/", 2)[-2:])
    width, height = annotated_size(value)
    shown: dict[str, Any] = {"file_name": str(name), "width": width, "height": height}
    for key in FEDERATED:
        if value.get(key):
            shown[key] = [needed_id(each) for each in value[key]]
    return KeyedRow("images", str(needed_id(value["id"])), location, json.dumps(shown))


def _category_row(value: Any, location: str) -> KeyedRow:
    return KeyedRow("categories", str(needed_id(value["id"])), location, str(value["name"]))


def size_of(image: str) -> tuple[int, int]:
    """Returns width and height in pixels of an image, given the text of its row."""
    values = json.loads(image)
    return values["width"], values["height"]


def category_names(rows: RowFile) -> dict[str, str]:
    """Returns the names of the categories by id."""
    return {row.key: row.text for row in rows.first("categories")}


def objects_of(
    annotations: list[KeyedRow], categories: Mapping[str, str], size: tuple[int, int], counts: Counts
) -> list[dict[str, Any]]:
    """Returns the elements of the objects of an image of the given width and height in pixels."""
    elements = []
    for row in annotations:
        value = json.loads(row.text)
        name = categories.get(str(id_number(value.get("category_id"))))
        if name is None:
            counts.skip("unknown category", row.location, repr(value.get("category_id"))[:40])
            continue
        box = clamped_box(value.get("bbox"), *size, counts, row.location)
        text = cleaned_text(name, counts, row.location) if box is not None else None
        if text is not None:
            elements.append({"caption": text, "bb": box, "grain": "object"})
    return elements
