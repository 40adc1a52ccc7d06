"""The official files of RefCOCO, RefCOCO+ and RefCOCOg (``refs(unc).p`` or ``refs(umd).p``) and of gRefCOCO
(``grefs(unc).json``), and ``instances.json``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from dataset.formats.annotations import Row, check_splits, check_unique, converted, read_json
from dataset.records.schema import BrokenRecordError
from utils.errors import UserError
from utils.pickles import read_plain_pickle

IMAGE_NAME = "COCO_train2014_{:012d}.jpg"
"""Name of an image. All images are from COCO train2014; the ``file_name`` of a reference has an additional suffix."""

NO_TARGET = -1
"""The ``ann_id`` of a gRefCOCO reference that refers to nothing in its image."""


def phrase_rows(refs: str, instances: str, splits: Sequence[str], key: str) -> Iterable[Row | BrokenRecordError]:
    """Returns the references of the given splits as rows of image, size (width, height), boxes (x, y, w, h as in the file),
    phrases and split. A reference in gRefCOCO may have several boxes, one box or none.

    Raises:
        UserError: if a file cannot be read or has a different format, an id occurs twice, or a split has no reference. The
            message names the config ``key``.
    """
    is_json = Path(refs).suffix == ".json"
    listed = read_json(refs, f"{key}.refs") if is_json else read_plain_pickle(refs, f"{key}.refs")
    if not isinstance(listed, list) or not all(isinstance(ref, dict) for ref in listed):
        raise UserError(f"{refs} is not a list of references", where=f"{key}.refs")
    check_splits([str(ref.get("split")) for ref in listed], splits, key, refs)
    content = read_json(instances, f"{key}.instances")
    check_unique((ref["ref_id"] for ref in listed if "ref_id" in ref), refs, "two references have the same ref_id")
    try:
        for name in ("images", "annotations"):
            check_unique((entry["id"] for entry in content[name]), instances, f"two {name} have the same id")
        boxes = {annotation["id"]: annotation["bbox"] for annotation in content["annotations"]}
        sizes = {image["id"]: (image["width"], image["height"]) for image in content["images"]}
    except (KeyError, TypeError) as error:
        raise UserError(f"{instances} is not a COCO instances file (no {error})", where=f"{key}.instances") from None

    def phrase_row(row: Row) -> Row:
        image, named = row.get("image_id", int), row.values.get("ann_id")
        annotations = named if isinstance(named, list) else [named]
        are_known = bool(annotations) and all(type(each) is int and each in boxes for each in annotations)
        if image not in sizes or not (are_known or annotations == [NO_TARGET]):
            raise BrokenRecordError("missing key", row.location, f"ann_id {named}, image_id {image}: not in instances")
        sentences = [sentence.get("sent") for sentence in row.get("sentences", list) if isinstance(sentence, dict)]
        phrases = [text for text in sentences if isinstance(text, str) and text.strip()]
        if not phrases:
            raise BrokenRecordError("empty text", row.location, "no sentence with words")
        known = {
            "image": IMAGE_NAME.format(image),
            "size": sizes[image],
            "boxes": [boxes[each] for each in dict.fromkeys(annotations) if each != NO_TARGET],
        }
        return Row({**known, "phrases": phrases, "split": row.get("split", str)}, row.location)

    rows = (Row(ref, f"{refs}[{index}]") for index, ref in enumerate(listed) if ref.get("split") in splits)
    return converted(rows, phrase_row)
