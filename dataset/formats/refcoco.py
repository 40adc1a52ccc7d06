"""The official files of RefCOCO, RefCOCO+ and RefCOCOg (``refs(unc).p`` or ``refs(umd).p``) and of gRefCOCO
(``grefs(unc).json``), and ``instances.json``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from batches.base import BrokenRecord
from dataset.broken import BrokenRecordError
from dataset.formats.annotations import Row, check_splits, check_unique, converted, read_json
from utils.errors import UserError
from utils.numerals import plain_number
from utils.pickles import read_plain_pickle

IMAGE_NAME = "COCO_train2014_{:012d}.jpg"
"""Name of an image. All images are from COCO train2014; the ``file_name`` of a reference has an additional suffix."""

NO_TARGET = -1
"""The ``ann_id`` of a gRefCOCO reference that refers to nothing in its image."""


@dataclass(frozen=True)
class Reference:
    """Expressions that refer to the same objects of an image: one object, or also several or none in gRefCOCO."""

    row: Row

    @property
    def split(self) -> str:
        """The split: train, val, testA, testB or test."""
        return str(self.row.values.get("split"))

    @property
    def image_id(self) -> int:
        """The image's id in COCO. Raises :class:`BrokenRecordError` if it is missing or not a number."""
        return self.row.get("image_id", int)

    @property
    def annotation_ids(self) -> list[Any]:
        """The ids of the objects in ``instances.json``; :data:`NO_TARGET` represents no object."""
        named = self.row.values.get("ann_id")
        return named if isinstance(named, list) else [named]

    @property
    def expressions(self) -> list[Any]:
        """The expressions as published; None in place of an expression without a text. Raises :class:`BrokenRecordError` if there
        is not a list of references."""
        sentences = self.row.get("sentences", list)
        return [sentence.get("sent") if isinstance(sentence, dict) else None for sentence in sentences]


def references(listed: Any, name: str, key: str | None = None) -> list[Reference]:
    """Returns the references in the content of an official file.

    Raises:
        UserError: if the content of the file ``name`` is not a list of objects. The message names the config ``key``.
    """
    if not isinstance(listed, list) or not all(isinstance(each, dict) for each in listed):
        raise UserError(f"{name} is not a list of references", where=key, remedy="is it the official file?")
    return [Reference(Row(values, f"{name}[{index}]")) for index, values in enumerate(listed)]


@dataclass(frozen=True)
class Instances:
    """The content of ``instances.json``.

    Attributes:
        boxes: the box of each object (x, y, w, h as in the file), by the object's id.
        sizes: width and height of each image in pixels, by the image's id.
        image_of: the image of each object, by the object's id.
    """

    boxes: dict[Any, Any] = field(default_factory=dict)
    sizes: dict[Any, tuple[int, int]] = field(default_factory=dict)
    image_of: dict[Any, Any] = field(default_factory=dict)

    def add(self, section: str, value: Any) -> None:
        """Adds an item of the list ``section`` of the file. Raises KeyError, TypeError, ValueError or OverflowError if a value is
        missing or has the wrong type."""
        if section == "annotations":
            self.boxes[value["id"]] = value["bbox"]
            self.image_of[value["id"]] = value.get("image_id")
        elif section == "images":
            self.sizes[value["id"]] = int(plain_number(value["width"])), int(plain_number(value["height"]))

    def boxes_of(self, reference: Reference) -> list[Any]:
        """Returns the boxes of the objects of a reference, as in the file.

        Raises:
            BrokenRecordError: if the file lacks its image or one of its objects.
        """
        image, listed = reference.image_id, reference.annotation_ids
        if image in self.sizes and listed == [NO_TARGET]:
            return []
        if (
            image not in self.sizes
            or not listed
            or not all(type(each) is int and each in self.boxes for each in listed)
        ):
            detail = (
                f"image_id {image}, ann_id {str(reference.row.values.get('ann_id'))[:60]}: no box or size in instances"
            )
            raise BrokenRecordError("missing key", detail)
        return [self.boxes[each] for each in dict.fromkeys(listed)]


def phrase_rows(refs: str, instances: str, splits: Sequence[str], key: str) -> Iterable[Row | BrokenRecord]:
    """Returns the references of the given splits as rows of image, size (width, height), boxes (x, y, w, h as in the file),
    phrases and split. A reference in gRefCOCO may have several boxes, one box or none.

    Raises:
        UserError: if a file cannot be read or has a different format, an id occurs twice, or a split has no reference. The
            message names the config ``key``.
    """
    is_json = Path(refs).suffix == ".json"
    content = read_json(refs, f"{key}.refs") if is_json else read_plain_pickle(refs, f"{key}.refs")
    listed = references(content, refs, f"{key}.refs")
    check_splits([each.split for each in listed], splits, key, refs)
    ids = (each.row.values["ref_id"] for each in listed if "ref_id" in each.row.values)
    check_unique(ids, refs, "two references have the same ref_id")
    objects = _read_instances(instances, f"{key}.instances")

    def phrase_row(row: Row) -> Row:
        reference = Reference(row)
        boxes = objects.boxes_of(reference)
        phrases = [text for text in reference.expressions if isinstance(text, str) and text.strip()]
        if not phrases:
            raise BrokenRecordError("empty text", "no sentence with words")
        image = {"image": IMAGE_NAME.format(reference.image_id), "size": objects.sizes[reference.image_id]}
        return Row({**image, "boxes": boxes, "phrases": phrases, "split": row.get("split", str)}, row.location)

    return converted((each.row for each in listed if each.split in splits), phrase_row)


def _read_instances(path: str, key: str) -> Instances:
    content, found = read_json(path, key), Instances()
    try:
        for section in ("images", "annotations"):
            check_unique((entry["id"] for entry in content[section]), path, f"two {section} have the same id")
            for entry in content[section]:
                # References to an image without a valid size are counted as broken.
                with suppress(ValueError, OverflowError):
                    found.add(section, entry)
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} is not a COCO instances file (no {error})", where=key) from None
    return found
