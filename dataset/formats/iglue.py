"""The official files of the cross-lingual sets of IGLUE (arXiv:2201.11732), and of GQA, as rows under our names."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

from dataset.formats.annotations import Row, converted, read_json, read_rows
from dataset.records.schema import BrokenRecordError
from utils.errors import UserError

ENTAILMENT = ("contradiction", "entailment", "neutral")
"""Labels of XVNLI, in the order of their classes (released)."""

FLICKR_FOLDER, COCO_FOLDER, GQA_FOLDER = "flickr30k/flickr30k-images", "coco/val2014", "gqa/images"
"""Where the images lie below ``images``."""

logger = logging.getLogger(__name__)

Rows = Iterable[Row | BrokenRecordError]


def xflickrco_rows(path: str, key: str) -> Rows:
    """xFlickr&CO's ``sentences``, ``id`` and ``img_path``, the name of an image of Flickr30K or of COCO, as caption, image_id and
    image."""

    def captioned(row: Row) -> Row:
        name = row.get("img_path", str)
        folder = COCO_FOLDER if name.startswith("COCO_") else FLICKR_FOLDER
        values = {"image": f"{folder}/{name}", "caption": row.get("sentences", list), "image_id": name}
        return Row(values, row.location)

    return converted(read_rows(path, key), captioned)


def xvnli_rows(path: str, key: str) -> Rows:
    """XVNLI's ``gold_label``, ``sentence2`` (the hypothesis; the premise is not read) and ``Flikr30kID`` (sic) as label, sentence
    and images. Rows without a label, on which the annotators did not agree, are left out."""

    def statement(row: Row) -> Row:
        image = row.get("Flikr30kID", str).removesuffix(".jpg")
        values = {
            "sentence": row.get("sentence2", str),
            "label": row.get("gold_label", str),
            "images": [f"{image}.jpg"],
        }
        return Row(values, row.location)

    rows = read_rows(path, key)
    labelled = [row for row in rows if not isinstance(row, Row) or row.values.get("gold_label") not in ("-", "")]
    if len(labelled) < len(rows):
        logger.info("%s: %d of %d rows of %s have no label", key, len(rows) - len(labelled), len(rows), path)
    if not labelled:
        raise UserError(f"{key}: no row of {path} has a label")
    return converted(labelled, statement)


def marvl_rows(path: str, key: str) -> Rows:
    """MaRVL's ``caption``, ``label``, ``left_img`` and ``right_img``, whose folder is the ``concept`` where they name none, as
    sentence, label and images."""

    def statement(row: Row) -> Row:
        sides = [row.get(side, str) for side in ("left_img", "right_img")]
        names = [name if "/" in name else f"{row.get('concept', str)}/{name}" for name in sides]
        return Row(
            {"sentence": row.get("caption", str), "label": row.get("label", object), "images": names}, row.location
        )

    return converted(read_rows(path, key), statement)


def gqa_rows(path: str, key: str) -> Rows:
    """A file of GQA or xGQA, questions by their id, as rows of question_id, question, image and answer, which is English in every
    language.

    Raises:
        UserError: with the config ``key``: the file cannot be read, or holds no such questions.
    """
    content = read_json(path, key)
    if not isinstance(content, dict) or not all(isinstance(asked, Mapping) for asked in list(content.values())[:1]):
        raise UserError(f"{key}: {path} is no object of questions by their id, as GQA's files are; see {key}.format")

    def question(row: Row) -> Row:
        values = {
            "question_id": row.values["question_id"],
            "question": row.get("question", str),
            "image": f"{GQA_FOLDER}/{row.get('imageId', str)}.jpg",
        }
        known = {"answer": row.get("answer", str)} if "answer" in row.values else {}
        return Row(values | known, row.location)

    rows = (
        Row({**(asked if isinstance(asked, dict) else {}), "question_id": identity}, f"{path}: {identity}")
        for identity, asked in content.items()
    )
    return converted(rows, question)


def gqa_lxmert_rows(path: str, key: str) -> Rows:
    """GQA as LXMERT has it, ``sent``, ``img_id``, ``label`` (the answer and its score) and ``question_id``, as the rows of
    :func:`gqa_rows`."""

    def question(row: Row) -> Row:
        values: dict[str, Any] = {
            "question_id": row.values.get("question_id"),
            "question": row.get("sent", str),
            "image": f"{GQA_FOLDER}/{row.get('img_id', str)}.jpg",
            "answer": list(row.get("label", dict)),
        }
        return Row(values, row.location)

    return converted(read_rows(path, key), question)
