"""Video question answering data: the files of MSRVTT-QA and MSVD-QA, or your own questions."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from batches.base import IGNORE
from batches.questions import ClassifiedBatch
from dataset.broken import BrokenRecordError
from dataset.config import VideoQADataConfig, VideoQuestionsConfig
from dataset.formats.annotations import Row, images_folder, parse_rows, read_json, read_rows, read_text
from dataset.formats.video_files import Videos
from dataset.media.views import TrainingView
from dataset.tasks.finetune import media_view
from dataset.tasks.question_batches import QuestionBatches, QuestionExample, given_answers
from dataset.tasks.questions import Question, QuestionTable, check_all_answered_or_none, question_of
from utils.errors import UserError


def read_video_questions(
    config: VideoQuestionsConfig, key: str, max_broken: float, *, answered: bool
) -> list[Question]:
    """Reads and checks a split. Every video must exist. A question has at most one answer.

    Args:
        config: the split.
        key: config key of the split, to name in error messages.
        max_broken: maximum fraction of broken rows.
        answered: if True, a question without an answer is broken. If False, either all questions have an answer or none has.

    Raises:
        UserError: if a file cannot be used, too many rows are broken, or only some questions have answers. The message names the
            config ``key``.
    """
    names = {} if config.names is None else _read_names(config.names, f"{key}.names")
    videos = Videos(images_folder(config.videos, config.questions), names)

    def parse(row: Row) -> Question:
        if isinstance(row.values.get("answer"), list):
            raise BrokenRecordError("wrong type", "answer is a list, but a question about a video has only one answer")
        return question_of(row, videos.of_row(row)[1], answered=answered)

    rows = read_rows(config.questions, key)
    if any(isinstance(row, Row) and _is_of_images(row) for row in rows[:1]):
        raise UserError(
            f"{config.questions} asks about images, but this config is for videos (task: video_qa)",
            where=key,
            remedy="for images, start from configs/vqa/vqa2_base_4m.yaml",
        )
    questions = parse_rows(rows, parse, key, max_broken, f"{videos.folder} ({key}.videos)")
    check_all_answered_or_none(questions, key)
    return questions


def _is_of_images(row: Row) -> bool:
    """Returns True if a row asks about an image, or if it is the official VQA v2 file of questions, which is a single object."""
    named = row.values.keys()
    return isinstance(row.values.get("questions"), list) or ("image" in named and not {"video", "video_id"} & named)


def _read_names(path: str, key: str) -> dict[str, str]:
    """Reads the file name, without suffix, of each video_id."""
    names = {}
    for number, line in enumerate(read_text(path, key).split("\n"), start=1):
        if not line.strip():
            continue
        parts = line.split()
        if len(parts) != 2:
            raise UserError(
                f"{path}:{number}: {line[:80]!r} is not a file name and a video_id, separated by a space",
                where=key,
                remedy="fix this line",
            )
        names[parts[1]] = re.sub(r"\.(avi|mp4)$", "", parts[0])
    return names


def read_classes(path: str, key: str, classes: int) -> list[str]:
    """Reads the candidate answers in the order of their labels.

    The file is a JSON list, or a JSON object from answer to label (``train_ans2label.json``).

    Raises:
        UserError: if the file cannot be read, has a different format, or does not contain ``classes`` answers. The message names
            the config ``key``.
    """
    content = read_json(path, key)
    if isinstance(content, dict) and sorted(content.values(), key=str) == sorted(range(len(content)), key=str):
        content = sorted(content, key=lambda answer: content[answer])
    if not isinstance(content, list) or not all(isinstance(answer, str) and answer.strip() for answer in content):
        raise UserError(
            f"{path} is neither a JSON list of answers nor an object from answers to labels 0, 1, 2 …", where=key
        )
    twice = [answer for answer, count in Counter(content).items() if count > 1]
    if twice:
        raise UserError(f"{path} lists {twice[0]!r} twice", where=key)
    if len(content) != classes:
        raise UserError(
            f"{path} lists {len(content)} answers", where=key, remedy=f"set model.classes={len(content)}, not {classes}"
        )
    return content


class VideoQABatches(QuestionBatches[VideoQADataConfig]):
    """Batches of questions with their videos. An epoch contains every question once.

    As in the authors' code, a question whose answer is not a candidate is read but has no loss.
    """

    def __init__(self, data: VideoQADataConfig, *, classes: Sequence[str], **options: Any):
        self.labels = {answer: label for label, answer in enumerate(classes)}
        super().__init__(data, **options)

    def read_questions(self, data: VideoQADataConfig) -> QuestionTable:
        items = QuestionTable(read_video_questions(data.train, self.key, data.max_broken, answered=True))
        if not any(item.most_frequent() in self.labels for item in items):
            raise UserError("no answer is one of the candidates of evaluation.answers", where=self.key)
        return items

    def make_view(self, data: VideoQADataConfig) -> TrainingView:
        return media_view(data, self.items.sources(), self.key, self.frames, self.image_size)

    def collate(self, examples: Sequence[QuestionExample], valid: Tensor, **fields: Any) -> ClassifiedBatch:
        labels = torch.tensor([self.labels.get(text, IGNORE) for text, _ in given_answers(examples)])
        return ClassifiedBatch(labels=labels, **self.fields(examples, valid), **fields)
