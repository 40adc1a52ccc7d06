"""The official files of VQA v2: ``v2_OpenEnded_mscoco_<split>_questions.json`` and ``v2_mscoco_<split>_annotations.json``."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from batches.base import BrokenRecord
from dataset.broken import BrokenRecordError
from dataset.formats.annotations import Row, converted, listed_rows, read_json
from utils.errors import UserError


def question_rows(path: str, annotations: str | None, key: str) -> Iterable[Row | BrokenRecord]:
    """Returns rows of question_id, question and image (``train2014/COCO_train2014_….jpg``, as in the official layout). With an
    ``annotations`` file, rows also have answer (a list of ten) and answer_type. Rows are built lazily, so that they are never all
    in memory at once.

    Raises:
        UserError: if a file cannot be read or is not a file of VQA v2. The message names the config ``key``.
    """
    content = read_json(path, key)
    rows = listed_rows(content, "questions", path, key, "VQA v2's file of questions")
    # test-dev2015 is a subset of test2015, and its images are in the folder test2015.
    subset = str(content.get("data_subtype", "")).replace("test-dev", "test")
    if not subset:
        raise UserError(f"{path} lacks VQA v2's 'data_subtype'", where=key)
    answers = None if annotations is None else _read_answers(annotations, f"{key}.annotations")

    def with_answers(row: Row) -> Row:
        identity, image = row.get("question_id", int), image_id_of(row)
        if answers is not None and identity not in answers:
            raise BrokenRecordError("missing key", f"{annotations} has no question_id {identity}")
        known = {} if answers is None else answers[identity]
        return Row({**row.values, "image": image_name(subset, image), **known}, row.location)

    return converted(rows, with_answers)


def image_id_of(question: Row) -> int:
    """Returns the id in COCO of a question's image. Raises :class:`BrokenRecordError` if it is missing."""
    return question.get("image_id", int)


def image_name(subset: str, number: int) -> str:
    """Returns the name of an image of COCO in the official layout."""
    return f"{subset}/COCO_{subset}_{number:012d}.jpg"


def _read_answers(path: str, key: str) -> dict[int, dict[str, Any]]:
    """Reads answer and answer_type by question_id."""
    content = read_json(path, key)
    listed = content.get("annotations") if isinstance(content, dict) else None
    if not isinstance(listed, list):
        raise UserError(f"{path} has no list 'annotations', so it is not VQA v2's file of answers", where=key)
    answers_of = {}
    for index, annotation in enumerate(listed):
        try:
            answers = [sys.intern(answer["answer"]) for answer in annotation["answers"]]
            answers_of[annotation["question_id"]] = {
                "answer": answers,
                "answer_type": annotation.get("answer_type", ""),
            }
        except (KeyError, TypeError, AttributeError):
            raise UserError(f"{path}: annotations[{index}] lacks VQA v2's question_id or answers", where=key) from None
    return answers_of
