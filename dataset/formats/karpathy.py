"""Karpathy's splits: ``dataset_coco.json`` and ``dataset_flickr30k.json``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from dataset.formats.annotations import Row, check_splits, check_unique, converted, listed_rows, read_json
from dataset.records.schema import BrokenRecordError


def captioned_rows(path: str, splits: Sequence[str], key: str) -> Iterable[Row | BrokenRecordError]:
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
        row for row, split in zip(rows, split_of, strict=True) if split in splits or isinstance(row, BrokenRecordError)
    ]
    return converted(wanted, _captioned)


def _captioned(row: Row) -> Row:
    name, sentences = row.get("filename", str), row.get("sentences", list)
    folder = row.values.get("filepath")
    return Row(
        {
            "image": f"{folder}/{name}" if folder else name,
            "caption": [sentence.get("raw") if isinstance(sentence, dict) else None for sentence in sentences],
            "image_id": str(row.values.get("cocoid", row.values.get("imgid", name))),
        },
        row.location,
    )
