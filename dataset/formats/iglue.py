"""Official files of the cross-lingual data sets of IGLUE (arXiv:2201.11732) and of GQA, as rows with our keys."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

from batches.base import BrokenRecord
from dataset.formats.annotations import Row, converted, read_json, read_rows
from utils.errors import UserError

ENTAILMENT = ("contradiction", "entailment", "neutral")
"""Labels of XVNLI, in the order of their classes in the authors' code."""

FLICKR_FOLDER, COCO_FOLDER, GQA_FOLDER = "flickr30k/flickr30k-images", "coco/val2014", "gqa/images"
"""Folders of the images, relative to the config's ``images`` folder."""

logger = logging.getLogger(__name__)

Rows = Iterable[Row | BrokenRecord]


def xflickrco_rows(path: str, key: str) -> Rows:
    """Returns rows of xFlickr&CO with image, caption and image_id. They are built from ``sentences``, ``id`` and ``img_path``,
    which is the name of an image of Flickr30K or COCO."""

    def captioned(row: Row) -> Row:
        name = row.get("img_path", str)
        folder = COCO_FOLDER if name.startswith("COCO_") else FLICKR_FOLDER
        values = {"image": f"{folder}/{name}", "caption": row.get("sentences", list), "image_id": name}
        return Row(values, row.location)

    return converted(read_rows(path, key), captioned)


def xvnli_rows(path: str, key: str) -> Rows:
    """Returns rows of XVNLI with sentence, label and images. They are built from ``sentence2`` (the hypothesis; the premise is
    not read), ``gold_label`` and ``Flikr30kID`` (sic). Rows without a label, on which the annotators did not agree, are
    skipped."""

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
        raise UserError(f"no row of {path} has a label", where=key)
    return converted(labelled, statement)


def marvl_rows(path: str, key: str) -> Rows:
    """Returns rows of MaRVL with sentence, label and images. They are built from ``caption``, ``label``, ``left_img`` and
    ``right_img``. If an image name has no folder, the value of ``concept`` is the folder."""

    def statement(row: Row) -> Row:
        sides = [row.get(side, str) for side in ("left_img", "right_img")]
        names = [name if "/" in name else f"{row.get('concept', str)}/{name}" for name in sides]
        return Row(
            {"sentence": row.get("caption", str), "label": row.get("label", object), "images": names}, row.location
        )

    return converted(read_rows(path, key), statement)


def gqa_rows(path: str, key: str) -> Rows:
    """Returns rows of question_id, question, image and answer from a file of GQA or xGQA, which is a JSON object that maps ids to
    questions. The answers are in English for all languages.

    Raises:
        UserError: if the file cannot be read or has a different format. The message names the config ``key``.
    """
    content = read_json(path, key)
    if not isinstance(content, dict) or not all(isinstance(asked, Mapping) for asked in list(content.values())[:1]):
        raise UserError(
            f"{path} is not a JSON object of questions by id like GQA's files", where=key, remedy=f"see {key}.format"
        )

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
    """Returns the same rows as :func:`gqa_rows` from LXMERT's files of GQA, which have ``sent``, ``img_id``, ``label`` (the
    answer and its score) and ``question_id``."""

    def question(row: Row) -> Row:
        values: dict[str, Any] = {
            "question_id": row.values.get("question_id"),
            "question": row.get("sent", str),
            "image": f"{GQA_FOLDER}/{row.get('img_id', str)}.jpg",
            "answer": list(row.get("label", dict)),
        }
        return Row(values, row.location)

    return converted(read_rows(path, key), question)
