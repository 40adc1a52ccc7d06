"""Video question answering data: MSRVTT-QA's and MSVD-QA's files, or questions of our own."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from dataset.formats.annotations import Row, images_folder, parse_rows, read_json, read_rows, read_text
from dataset.formats.video_files import Videos
from dataset.media.augment import stack_views
from dataset.media.video import VideoSource
from dataset.records.schema import BrokenRecordError
from dataset.tasks.finetune import FILLER_TEXT, FineTuneBatches, MediaDataConfig, cleaned_question, media_view
from dataset.text.processors import TextLimits, clean_question, mentions_side
from utils.batch import IGNORE, ClassifiedBatch
from utils.config import Config
from utils.errors import UserError


class VideoQuestionsConfig(Config):
    """Questions about videos: a JSON array or JSON lines of ``{"question", "answer", "video_id"}``, as MSRVTT-QA and MSVD-QA
    have them, or with ``video`` in the place of ``video_id``: a path, or a list of base64 pictures."""

    questions: str = Field(description="MSRVTT-QA's or MSVD-QA's file, or questions of one's own")
    videos: str | None = Field(None, description="folder of the videos; null: that of `questions`")
    names: str | None = Field(
        None, description="MSVD's youtube_mapping.txt: lines of a file name without suffix and a video_id"
    )


class VideoQADataConfig(MediaDataConfig):
    """Training questions."""

    train: VideoQuestionsConfig
    text: TextLimits = Field(
        default_factory=lambda: TextLimits(max_tokens=40, max_words=30), description="how long a question may be"
    )
    careful_flip: bool = Field(
        True,
        description="do not flip where question or answer have left or right as a word; English only (released: as letters)",
    )


@dataclass(frozen=True, slots=True)
class VideoQuestion:
    """``answer`` as written, "" where none is given; ``answer_type``: the data set's word for it, or ""."""

    question_id: int | str
    question: str
    answer: str
    answer_type: str
    video: VideoSource
    place: str


def read_video_questions(
    config: VideoQuestionsConfig, key: str, max_broken: float, *, answered: bool
) -> list[VideoQuestion]:
    """Read and check a split; every video is looked for.

    Args:
        config: the split.
        key: the config key that names it.
        max_broken: the share of broken rows that is tolerated.
        answered: without an answer a question is broken. Otherwise all may have one, or none.

    Raises:
        UserError: with the config ``key``: a file cannot be used, too many rows are broken, or only some have answers.
    """
    names = {} if config.names is None else _read_names(config.names, f"{key}.names")
    videos = Videos(images_folder(config.videos, config.questions), names)
    sources: dict[Path, VideoSource] = {}
    rows = read_rows(config.questions, key)
    if any(isinstance(row, Row) and _is_of_images(row) for row in rows[:1]):
        raise UserError(
            f"{key}: {config.questions} asks about images, and this config is one of videos (task: video_qa); for images, start "
            "from configs/vqa/vqa2_base_4m.yaml"
        )
    found = parse_rows(rows, lambda row: _parse(row, videos, sources, answered), key, max_broken)
    without = [question for question in found if not question.answer]
    if 0 < len(without) < len(found):
        raise UserError(
            f"{key}: {len(without)} of {len(found)} questions have no answer (the first: {without[0].place}); either all "
            "have one, and are measured, or none"
        )
    return found


def _is_of_images(row: Row) -> bool:
    """Whether a row asks about an image, or is VQA v2's own file of questions, which is one object."""
    named = row.values.keys()
    return isinstance(row.values.get("questions"), list) or ("image" in named and not {"video", "video_id"} & named)


def _parse(row: Row, videos: Videos, sources: dict[Path, VideoSource], answered: bool) -> VideoQuestion:
    text = row.get("question", str)
    if not clean_question(text, 1000).strip():
        raise BrokenRecordError("empty text", row.place, f"question is {text[:80]!r}, a text without words")
    answer = ""
    if answered or row.values.get("answer") is not None:
        answer = row.get("answer", str)
        if not answer.strip():
            raise BrokenRecordError("empty text", row.place, "the answer is empty")
    _, video = videos.of_row(row)
    # There are many questions about a video: they share what says where it lies.
    video = sources.setdefault(video.path, video) if video.path is not None else video
    number = row.values.get("question_id", row.values.get("id"))
    return VideoQuestion(
        question_id=number if isinstance(number, int | str) else row.place,
        question=text,
        answer=sys.intern(answer),
        answer_type=sys.intern(str(row.values.get("answer_type") or "")),
        video=video,
        place=row.place,
    )


def _read_names(path: str, key: str) -> dict[str, str]:
    """File names without suffix by video_id."""
    names = {}
    for number, line in enumerate(read_text(path, key).splitlines(), start=1):
        if not line.strip():
            continue
        parts = line.split()
        if len(parts) != 2:
            raise UserError(f"{key}: {path}:{number}: {line[:80]!r} is not a file name and a video_id")
        names[parts[1]] = re.sub(r"\.(avi|mp4)$", "", parts[0])
    return names


def read_classes(path: str, key: str, classes: int) -> list[str]:
    """The candidate answers in order of their labels: a JSON list, or a JSON object from answer to label
    (``train_ans2label.json``).

    Raises:
        UserError: with the config ``key``: the file cannot be read, holds no such list, or not ``classes`` of them.
    """
    content = read_json(path, key)
    if isinstance(content, dict) and sorted(content.values(), key=str) == sorted(range(len(content)), key=str):
        content = sorted(content, key=lambda answer: content[answer])
    if not isinstance(content, list) or not all(isinstance(each, str) and each.strip() for each in content):
        raise UserError(
            f"{key}: {path} is neither a JSON list of answers nor an object from answers to labels 0, 1, 2 …"
        )
    twice = [answer for answer, count in Counter(content).items() if count > 1]
    if twice:
        raise UserError(f"{key}: {path} lists {twice[0]!r} twice")
    if len(content) != classes:
        raise UserError(f"{key}: {path} lists {len(content)} answers; set model.classes={len(content)}, not {classes}")
    return content


@dataclass(frozen=True)
class VideoQuestionExample:
    """One training row: views (F, 3, S, S) of the frames, the cleaned question, and the label of the answer."""

    pixels: Tensor
    question: str
    label: int


class VideoQABatches(FineTuneBatches[VideoQADataConfig, VideoQuestionExample]):
    """Every question once an epoch. One whose answer is no candidate is read, and teaches nothing (as released)."""

    name = "questions"

    def __init__(self, data: VideoQADataConfig, *, classes: Sequence[str], **options: Any):
        self.labels = {answer: label for label, answer in enumerate(classes)}
        super().__init__(data, **options)

    def read(self, data: VideoQADataConfig) -> int:
        self.items = read_video_questions(data.train, "data.train", data.max_broken, answered=True)
        if not any(item.answer in self.labels for item in self.items):
            raise UserError("data.train: no answer is one of the candidates of evaluation.answers")
        self.view = media_view(data, [item.video for item in self.items], self.frames, self.image_size)
        return len(self.items)

    def example(self, index: int, rng: np.random.Generator) -> VideoQuestionExample:
        item = self.items[index]
        question = cleaned_question(item.question, self.text.max_words, item.place)
        may_flip = not (self.data.careful_flip and any(map(mentions_side, (question, item.answer))))
        pixels = self.view(item.video, rng, may_flip=may_flip)
        return VideoQuestionExample(pixels, question, self.labels.get(item.answer, IGNORE))

    def place(self, index: int) -> str:
        return self.items[index].place

    def filler(self) -> VideoQuestionExample:
        return VideoQuestionExample(self.view.filler(), FILLER_TEXT, IGNORE)

    def collate(self, examples: Sequence[VideoQuestionExample], valid: Tensor, **made: Any) -> ClassifiedBatch:
        return ClassifiedBatch(
            pixels=stack_views([example.pixels for example in examples]),
            text=self.text.encode_plain([example.question for example in examples]),
            labels=torch.tensor([example.label for example in examples]),
            question_of_answer=torch.arange(len(examples)),
            weights=torch.ones(len(examples)),
            valid=valid,
            **made,
        )
