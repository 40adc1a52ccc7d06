"""The official ``question_answers.json`` of Visual Genome."""

from __future__ import annotations

from collections.abc import Iterator

from batches.base import BrokenRecord
from dataset.broken import BrokenRecordError, broken_record
from dataset.formats.annotations import ImageFiles, Row, read_rows

IMAGE_FOLDERS = ("", "VG_100K/", "VG_100K_2/")
"""Possible folders of the images: merged into one folder, or as unpacked."""


def question_rows(path: str, images: ImageFiles, key: str) -> Iterator[Row | BrokenRecord]:
    """Yields rows of question_id, question, image and answer. The answer is in lower case and has no full stop.

    Raises:
        UserError: if the file cannot be read. The message names the config ``key``.
    """
    for row in read_rows(path, key):
        if isinstance(row, BrokenRecord):
            yield row
            continue
        try:
            listed = row.get("qas", list)
        except BrokenRecordError as error:
            yield broken_record(error, row.location)
            continue
        for index, values in enumerate(listed):
            question = Row(values if isinstance(values, dict) else {}, f"{row.location}.qas[{index}]")
            try:
                answer = question.get("answer", str).lower().strip().rstrip(".")
                image = _image_file(question.get("image_id", int), images)
            except BrokenRecordError as error:
                yield broken_record(error, question.location)
                continue
            yield Row(
                {**question.values, "question_id": question.values.get("qa_id"), "image": image, "answer": answer},
                question.location,
            )


def _image_file(image_id: int, images: ImageFiles) -> str:
    names = [f"{folder}{image_id}.jpg" for folder in IMAGE_FOLDERS]
    return next((name for name in names if images.has(name)), names[0])
