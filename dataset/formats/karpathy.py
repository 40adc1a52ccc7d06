"""Karpathy's splits: ``dataset_coco.json`` and ``dataset_flickr30k.json``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from batches.base import BrokenRecord
from dataset.formats.annotations import Row, check_splits, check_unique, converted, listed_rows, read_json
from dataset.image_ids import needed_id


@dataclass(frozen=True)
class KarpathyImage:
    """An image in one of Karpathy's files. A property raises :class:`BrokenRecordError` if the file lacks the value."""

    row: Row

    @property
    def split(self) -> str:
        """The split: train, restval (additional training images of COCO), val or test."""
        return self.row.get("split", str)

    @property
    def folder(self) -> str:
        """The folder of COCO's images, such as val2014; "" for Flickr30K."""
        return str(self.row.values.get("filepath") or "")

    @property
    def name(self) -> str:
        """The name of the image file."""
        return self.row.get("filename", str)

    @property
    def path(self) -> str:
        """The path of the image file below the folder of all images."""
        return f"{self.folder}/{self.name}" if self.folder else self.name

    @property
    def coco_id(self) -> int:
        """The image's id in COCO. Raises ValueError if it is not an id."""
        return needed_id(self.row.get("cocoid", object))

    @property
    def captions(self) -> list[Any]:
        """The captions as published; None in place of a caption without a text."""
        sentences = self.row.get("sentences", list)
        return [sentence.get("raw") if isinstance(sentence, dict) else None for sentence in sentences]


def captioned_rows(path: str, splits: Sequence[str], key: str) -> Iterable[Row | BrokenRecord]:
    """Returns the images of the given splits as rows of image, caption (a list) and image_id.

    Raises:
        UserError: if the file cannot be read or is not one of Karpathy's files, an image occurs twice, or a split has no image.
            The message names the config ``key``.
    """
    rows = listed_rows(read_json(path, key), "images", path, key, "Karpathy's file")
    split_of = [row.values.get("split") if isinstance(row, Row) else None for row in rows]
    check_splits([str(split) for split in split_of], splits, key, path)
    names = (row.values.get("filename") for row in rows if isinstance(row, Row))
    check_unique(names, path, "two entries have the same image")
    wanted = [
        row for row, split in zip(rows, split_of, strict=True) if split in splits or isinstance(row, BrokenRecord)
    ]
    return converted(wanted, _captioned)


def _captioned(row: Row) -> Row:
    image = KarpathyImage(row)
    image_id = row.values.get("cocoid", row.values.get("imgid", image.name))
    return Row({"image": image.path, "caption": image.captions, "image_id": str(image_id)}, row.location)
