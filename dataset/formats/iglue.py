"""The rows of cross-lingual sets (IGLUE, arXiv:2201.11732) as the official files have them, under the names that ours have.

Each function takes one row of a file and gives it back unchanged where it is none of its sets.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from dataset.formats.annotations import Row
from dataset.records.schema import BrokenRecordError

ENTAILMENT = ("contradiction", "entailment", "neutral")
"""Labels of XVNLI, in the order of their classes (released)."""

ANNOTATORS = 10
"""Answers to a question of VQA v2, by which answers are measured. GQA's one answer counts as so many equal ones: nothing but that
very answer is right."""

FLICKR_FOLDER, COCO_FOLDER, GQA_FOLDER = "flickr30k/flickr30k-images", "coco/val2014", "gqa/images"
"""Where the pictures lie below ``images``."""


def retrieval_row(row: Row) -> Row:
    """xFlickr&CO: ``sentences``, ``id`` and ``img_path``, the name of a picture of Flickr30K or of COCO."""
    if "img_path" not in row.values:
        return row
    name = row.get("img_path", str)
    folder = COCO_FOLDER if name.startswith("COCO_") else FLICKR_FOLDER
    values = {"image": f"{folder}/{name}", "caption": row.get("sentences", list), "image_id": name}
    return Row(values, row.place)


def statement_row(row: Row) -> Row:
    """XVNLI: ``gold_label``, ``sentence2`` (the hypothesis; the premise is not read) and ``Flikr30kID`` (sic).

    MaRVL: ``caption``, ``label``, ``left_img`` and ``right_img``, whose folder is the ``concept`` where they name none.
    """
    if "gold_label" in row.values:
        picture = row.get("Flikr30kID", str).removesuffix(".jpg")
        values = {
            "sentence": row.get("sentence2", str),
            "label": row.get("gold_label", str),
            "images": [f"{picture}.jpg"],
        }
        return Row(values, row.place)
    if "left_img" in row.values:
        found = [row.get(key, str) for key in ("left_img", "right_img")]
        names = [name if "/" in name else f"{row.get('concept', str)}/{name}" for name in found]
        return Row({"sentence": row.get("caption", str), "label": row.get("label", object), "images": names}, row.place)
    return row


def without_gold(row: Row | BrokenRecordError) -> bool:
    """Whether the annotators of a row of XVNLI did not agree: it has no label."""
    return isinstance(row, Row) and "gold_label" in row.values and row.values["gold_label"] not in ENTAILMENT


def is_xgqa(content: Any) -> bool:
    """Whether a JSON object is a file of xGQA's or GQA's: questions by their id."""
    if not isinstance(content, Mapping) or not content:
        return False
    first = next(iter(content.values()))
    return isinstance(first, Mapping) and "imageId" in first and "question" in first


def xgqa_rows(content: Mapping[str, Any], path: str) -> Iterator[Row | BrokenRecordError]:
    """The questions of such a file; their answers are English in every language."""
    for identity, each in content.items():
        row = Row(each if isinstance(each, dict) else {}, f"{path}: {identity}")
        try:
            values: dict[str, Any] = {
                "question_id": identity,
                "question": row.get("question", str),
                "image": f"{GQA_FOLDER}/{row.get('imageId', str)}.jpg",
            }
            if "answer" in row.values:
                values["answer"] = [row.get("answer", str)] * ANNOTATORS
            yield Row(values, row.place)
        except BrokenRecordError as error:
            yield error


def question_row(row: Row) -> Row:
    """GQA as LXMERT has it: ``sent``, ``img_id``, ``label`` (the answer and its score) and ``question_id``."""
    if "sent" not in row.values or "img_id" not in row.values:
        return row
    values = {
        "question_id": row.values.get("question_id"),
        "question": row.get("sent", str),
        "image": f"{GQA_FOLDER}/{row.get('img_id', str)}.jpg",
        "answer": [answer for answer in row.get("label", dict) for _ in range(ANNOTATORS)],
    }
    return Row(values, row.place)
