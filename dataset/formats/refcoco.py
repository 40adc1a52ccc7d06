"""The official files of RefCOCO, RefCOCO+ and RefCOCOg: ``refs(unc).p`` or ``refs(umd).p``, and ``instances.json``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from dataset.formats.annotations import Row, converted, read_json, wanted_splits
from dataset.records.schema import BrokenRecordError
from utils.errors import UserError
from utils.pickles import read_plain_pickle

IMAGE_NAME = "COCO_train2014_{:012d}.jpg"
"""Name of an image. All images are from COCO train2014; the ``file_name`` of a reference has an additional suffix."""


def phrase_rows(refs: str, instances: str, splits: Sequence[str], key: str) -> Iterable[Row | BrokenRecordError]:
    """Returns the references of the given splits as rows of image, size (width, height), box (x, y, w, h as in the file), phrases
    and split.

    Raises:
        UserError: with the config ``key``, if a file cannot be read or has another format, or a split has no reference.
    """
    listed = read_plain_pickle(refs, f"{key}.refs")
    if not isinstance(listed, list) or not all(isinstance(ref, dict) for ref in listed):
        raise UserError(f"{key}.refs: {refs} is not a list of references")
    wanted_splits([str(ref.get("split")) for ref in listed], splits, key, refs)
    content = read_json(instances, f"{key}.instances")
    try:
        boxes = {annotation["id"]: annotation["bbox"] for annotation in content["annotations"]}
        sizes = {image["id"]: (image["width"], image["height"]) for image in content["images"]}
    except (KeyError, TypeError) as error:
        raise UserError(f"{key}.instances: {instances} is not a COCO instances file (no {error})") from None

    def phrase_row(row: Row) -> Row:
        image, annotation = row.get("image_id", int), row.get("ann_id", int)
        if annotation not in boxes or image not in sizes:
            raise BrokenRecordError(
                "missing key", row.location, f"ann_id {annotation}, image_id {image}: not in instances"
            )
        sentences = [sentence.get("sent") for sentence in row.get("sentences", list) if isinstance(sentence, dict)]
        phrases = [text for text in sentences if isinstance(text, str) and text.strip()]
        if not phrases:
            raise BrokenRecordError("empty text", row.location, "no sentence with words")
        known = {"image": IMAGE_NAME.format(image), "size": sizes[image], "box": boxes[annotation]}
        return Row({**known, "phrases": phrases, "split": row.get("split", str)}, row.location)

    rows = (Row(ref, f"{refs}[{index}]") for index, ref in enumerate(listed) if ref.get("split") in splits)
    return converted(rows, phrase_row)
