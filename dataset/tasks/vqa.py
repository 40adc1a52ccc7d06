"""Question answering data: VQA v2's and Visual Genome's own files, or lists of questions with their answers."""

from __future__ import annotations

import hashlib
import logging
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from dataset.formats.annotations import Pictures, Row, images_folder, parse_rows, read_json, read_rows
from dataset.formats.iglue import is_xgqa, question_row, xgqa_rows
from dataset.media.augment import AugmentConfig, RandAugment, stack_views, training_view
from dataset.media.encoded import Picture
from dataset.media.views import black
from dataset.records.schema import BrokenRecordError, check_text
from dataset.tasks.finetune import FILLER_TEXT, FineTuneBatches, FineTuneDataConfig, cleaned_question
from dataset.tasks.questions import Question, QuestionTable
from dataset.text.processors import PlainTextProcessor, TextLimits, clean_question, mentions_side
from utils.batch import QuestionBatch
from utils.config import Config
from utils.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

logger = logging.getLogger(__name__)

GENOME_WEIGHT = 0.5
"""Of the one answer to a question of Visual Genome (released)."""

GENOME_FOLDERS = ("", "VG_100K/", "VG_100K_2/")
"""Where Visual Genome's pictures may lie: merged, or as they are unpacked."""

COMMON = 9
"""Questions that an answer is the most frequent one of, at least, to be a candidate: the rule that gave VQA v2's list."""


class QuestionsConfig(Config):
    """A source of questions.

    ``questions`` is VQA v2's question file, whose answers are in ``annotations`` and whose pictures are found below ``images``
    as in the official layout (``train2014/COCO_train2014_….jpg``); or Visual Genome's ``question_answers.json``
    (``<image_id>.jpg``, in ``VG_100K`` and ``VG_100K_2`` too); or a JSON array or JSON lines of ``{"question_id", "question",
    "image", "answer"}``, the answer a text or a list with that of every annotator; or a file of GQA or xGQA, whose pictures are
    found below ``images`` as ``gqa/images/<imageId>.jpg``.
    """

    questions: str = Field(description="VQA v2's or Visual Genome's file, or questions with their answers")
    annotations: str | None = Field(
        None, description="the answers to VQA v2's questions; null: they are in `questions`"
    )
    images: str | None = Field(None, description="folder of relative paths; null: that of `questions`")
    weight: float | None = Field(
        None,
        gt=0,
        description="factor of the answers' losses; null: 0.5 for Visual Genome's questions and 1 for others",
    )
    pictures: tuple[float, float] = Field(
        (0.0, 1.0),
        description="which share of the pictures is taken, with all their questions: those whose name's hash, which is in "
        "0..1, is not less than the first and less than the second number; so a part can be held out, or only that be read",
    )

    @model_validator(mode="after")
    def _share_is_not_empty(self) -> QuestionsConfig:
        low, high = self.pictures
        if not 0 <= low < high <= 1:
            raise ValueError(f"pictures is [{low:g}, {high:g}]; it should be two rising numbers within 0 and 1")
        return self


class VQADataConfig(FineTuneDataConfig):
    """Training questions."""

    train: list[QuestionsConfig] = Field(min_length=1, description="sources, of which every question counts alike")
    text: TextLimits = Field(
        default_factory=lambda: TextLimits(max_tokens=40, max_words=30), description="how long a question may be"
    )
    max_answer_tokens: int = Field(
        40, ge=3, description="tokens of an answer with [CLS] and [SEP]; the rest is cut off"
    )
    augment: AugmentConfig = Field(
        default_factory=lambda: AugmentConfig(scale=(0.5, 1.0)), description="augmentation of the pictures"
    )
    careful_flip: bool = Field(
        True,
        description="do not flip where question or answers have left or right as a word; English only (released: as letters)",
    )


def read_questions(config: QuestionsConfig, key: str, max_broken: float, *, answered: bool) -> list[Question]:
    """Read and check a source; every picture is looked for.

    Args:
        config: the source.
        key: the config key that names it.
        max_broken: the share of broken rows that is tolerated.
        answered: without answers a question is broken. Otherwise all may have some, or none.

    Raises:
        UserError: with the config ``key``: a file cannot be used, too many rows are broken, no picture is of the wanted share,
            or only some questions have answers.
    """
    pictures = Pictures(images_folder(config.images, config.questions))
    rows = _read_rows(config, key, pictures, answered)
    wanted = (row for row in rows if isinstance(row, BrokenRecordError) or _is_taken(row, config.pictures))
    paths: dict[str, Path] = {}
    found = parse_rows(wanted, lambda row: _parse(row, pictures, paths, config, answered), key, max_broken)
    if not found:
        raise UserError(f"{key}: no picture of {config.questions} is within pictures: {list(config.pictures)}")
    without = [question for question in found if not question.answers]
    if 0 < len(without) < len(found):
        raise UserError(
            f"{key}: {len(without)} of {len(found)} questions have no answers (the first: {without[0].place}); either all "
            "have, and are measured, or none"
        )
    return found


def _read_rows(
    config: QuestionsConfig, key: str, pictures: Pictures, answered: bool
) -> Iterable[Row | BrokenRecordError]:
    """The questions of every format as rows with question_id, question, image and what is known of answer and answer_type.

    Those of the large files are made one after the other, so that they are never all in memory.
    """
    content = _one_object(config.questions, key)
    if is_xgqa(content) and config.annotations is None:
        return xgqa_rows(content, config.questions)
    if "questions" in content:
        if answered and config.annotations is None:
            raise UserError(f"{key}: {config.questions} has VQA v2's questions without answers; give `annotations` too")
        return _official_rows(config, key)
    if config.annotations is not None:
        raise UserError(
            f"{key}.annotations: {config.questions} is not VQA v2's question file; its rows hold their answers"
        )
    rows = read_rows(config.questions, key)
    if isinstance(rows[0], Row) and "qas" in rows[0].values:
        return _genome_rows(rows, pictures)
    return _under_our_names(rows)


def _under_our_names(rows: Iterable[Row | BrokenRecordError]) -> Iterator[Row | BrokenRecordError]:
    for row in rows:
        try:
            yield question_row(row) if isinstance(row, Row) else row
        except BrokenRecordError as error:
            yield error


def _one_object(path: str, key: str) -> dict[str, Any]:
    """The file's content if it is one JSON object, and not rows; else an empty one."""
    try:
        content = read_json(path, key)
    except UserError:
        if not Path(path).expanduser().is_file():
            raise
        return {}  # JSON lines; whatever else is wrong is told when the rows are read
    return content if isinstance(content, dict) else {}


def _official_rows(config: QuestionsConfig, key: str) -> Iterator[Row | BrokenRecordError]:
    asked = read_json(config.questions, key)
    answers = _annotated(config.annotations, key) if config.annotations is not None else None
    # test-dev2015 is a part of test2015, whose pictures it shares.
    subset = str(asked.get("data_subtype", "")).replace("test-dev", "test")
    if not subset or not isinstance(asked["questions"], list):
        raise UserError(f"{key}: {config.questions} lacks VQA v2's 'data_subtype', or 'questions' is no list")
    for index, each in enumerate(asked["questions"]):
        place = f"{config.questions}: questions[{index}]"
        try:
            if not isinstance(each, dict):
                raise BrokenRecordError("wrong type", place, f"{each!r:.80} is no object")
            row = Row(each, place)
            identity, image = row.get("question_id", int), row.get("image_id", int)
            values = {**each, "image": f"{subset}/COCO_{subset}_{image:012d}.jpg"}
            if answers is not None:
                if identity not in answers:
                    raise BrokenRecordError("missing key", place, f"{config.annotations} has no question_id {identity}")
                values |= answers[identity]
            yield Row(values, place)
        except BrokenRecordError as error:
            yield error


def _annotated(path: str, key: str) -> dict[int, dict[str, Any]]:
    """answer and answer_type by question_id."""
    content = read_json(path, f"{key}.annotations")
    listed = content.get("annotations") if isinstance(content, dict) else None
    if not isinstance(listed, list):
        raise UserError(f"{key}.annotations: {path} has no list 'annotations', as VQA v2's file of answers has")
    found = {}
    for index, each in enumerate(listed):
        try:
            answers = [sys.intern(answer["answer"]) for answer in each["answers"]]
            found[each["question_id"]] = {"answer": answers, "answer_type": each.get("answer_type", "")}
        except (KeyError, TypeError, AttributeError):
            raise UserError(
                f"{key}.annotations: {path}: annotations[{index}] lacks question_id or answers as VQA v2 has them"
            ) from None
    return found


def _genome_rows(rows: Iterable[Row | BrokenRecordError], pictures: Pictures) -> Iterator[Row | BrokenRecordError]:
    for row in rows:
        try:
            if isinstance(row, BrokenRecordError):
                raise row
            listed = row.get("qas", list)
        except BrokenRecordError as error:
            yield error
            continue
        for index, each in enumerate(listed):
            asked = Row(each if isinstance(each, dict) else {}, f"{row.place}.qas[{index}]")
            try:
                answer = asked.get("answer", str).lower().strip().rstrip(".")
                image = _genome_picture(asked.get("image_id", int), pictures)
            except BrokenRecordError as error:
                yield error
                continue
            known = {"question_id": asked.values.get("qa_id"), "image": image, "dataset": "vg", "answer": answer}
            yield Row(asked.values | known, asked.place)


def _genome_picture(image: int, pictures: Pictures) -> str:
    return next(
        (f"{folder}{image}.jpg" for folder in GENOME_FOLDERS if pictures.has(f"{folder}{image}.jpg")), f"{image}.jpg"
    )


def _is_taken(row: Row, share: tuple[float, float]) -> bool:
    if share == (0.0, 1.0):
        return True
    digest = hashlib.blake2b(str(row.values.get("image")).encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return share[0] <= int.from_bytes(digest, "big") / 2**64 < share[1]


def _parse(row: Row, pictures: Pictures, paths: dict[str, Path], config: QuestionsConfig, answered: bool) -> Question:
    text = row.get("question", str)
    if not clean_question(text, 1000).strip():
        raise BrokenRecordError("empty text", row.place, f"question is {text[:80]!r}, a text without words")
    answers: list[Any] = []
    if answered or row.values.get("answer") is not None:
        value: Any = row.get("answer", object)
        answers = value if isinstance(value, list) else [value]
        for answer in answers:
            if not isinstance(answer, str):
                raise BrokenRecordError("wrong type", row.place, f"answer holds {answer!r:.80}, not a text")
            check_text(answer, "answer", row.place)
        answers = [answer for answer in answers if answer.strip()]
        if not answers:
            raise BrokenRecordError("empty text", row.place, "there is no answer, or only empty ones")
    name = row.get("image", str)
    source = pictures.find(name, row.place)
    assert source.path is not None
    weight = config.weight or (GENOME_WEIGHT if row.values.get("dataset") == "vg" else 1.0)
    return Question(
        question_id=_identity(row),
        question=text,
        path=paths.setdefault(name, source.path),
        answers=tuple(sys.intern(answer) for answer in answers),
        answer_type=sys.intern(str(row.values.get("answer_type") or "")),
        weight=weight,
        place=row.place,
    )


def _identity(row: Row) -> int | str:
    value = row.values.get("question_id")
    return value if isinstance(value, int | str) else row.place


def read_candidates(path: str, key: str) -> list[str]:
    """The candidate answers of a JSON list, or the keys of a JSON object from answer to label; each once.

    The published list has a null among its 3,129 entries: it is left out, and so are texts without any word.

    Raises:
        UserError: with the config ``key``: the file cannot be read, or holds no such list.
    """
    content = read_json(path, key)
    listed = list(content) if isinstance(content, dict | list) else None
    if isinstance(content, dict) and not all(type(label) is int for label in content.values()):
        listed = None
    if listed is None or not all(entry is None or isinstance(entry, str) for entry in listed):
        raise UserError(f"{key}: {path} is no JSON list of texts, and no JSON object from text to label")
    found = list(dict.fromkeys(entry for entry in listed if entry is not None and entry.strip()))
    if not found:
        raise UserError(f"{key}: {path} has no candidate answer")
    if len(found) < len(listed):
        logger.warning(
            "%s: %d of %d entries of %s are null, empty or repeated", key, len(listed) - len(found), len(listed), path
        )
    return found


def frequent_answers(
    questions: Iterable[Question], normalise: Callable[[str], str], at_least: int = COMMON
) -> list[str]:
    """Candidates made of training answers, the most frequent first: those that are, normalised, the answer of most annotators
    to ``at_least`` questions. Questions with a single annotator, as Visual Genome's, have no say (as in VQA v2's list)."""
    counts = Counter(normalise(each.most_frequent()) for each in questions if len(each.answers) > 1)
    kept = [answer for answer, count in counts.items() if count >= at_least and answer]
    return sorted(kept, key=lambda answer: (-counts[answer], answer))


@dataclass(frozen=True)
class QuestionExample:
    """One training row: a view (3, S, S) of the picture, the cleaned question, and answers with their weights."""

    pixels: Tensor
    question: str
    answers: list[tuple[str, float]]


class VQABatches(FineTuneBatches[VQADataConfig, QuestionExample]):
    """Every question of all sources once an epoch, with all its answers."""

    name = "questions"

    def __init__(self, data: VQADataConfig, *, tokenizer: PreTrainedTokenizerFast, **options: Any):
        self.answers = PlainTextProcessor(tokenizer, TextLimits(max_tokens=data.max_answer_tokens))
        super().__init__(data, tokenizer=tokenizer, **options)

    def read(self, data: VQADataConfig) -> int:
        self.items = QuestionTable(
            [
                question
                for number, source in enumerate(data.train)
                for question in read_questions(source, f"data.train[{number}]", data.max_broken, answered=True)
            ]
        )
        self.augment = RandAugment(data.augment.rand_augment_ops, data.augment.rand_augment_magnitude)
        return len(self.items)

    def example(self, index: int, rng: np.random.Generator) -> QuestionExample:
        item = self.items[index]
        question = cleaned_question(item.question, self.text.max_words, item.place)
        answers = item.weighted_answers()
        said = [question, *(answer for answer, _ in answers)]
        pixels = training_view(
            Picture(item.picture.load(), self.data.max_pixels, item.place, self.data.pixels),
            self.image_size,
            self.data.augment,
            self.augment,
            rng,
            may_flip=not (self.data.careful_flip and any(map(mentions_side, said))),
        )
        return QuestionExample(pixels, question, answers)

    def place(self, index: int) -> str:
        return self.items.place(index)

    def filler(self) -> QuestionExample:
        return QuestionExample(black(self.image_size), FILLER_TEXT, [(FILLER_TEXT, 0.0)])

    def collate(self, examples: Sequence[QuestionExample], valid: Tensor, **made: Any) -> QuestionBatch:
        counts = [len(example.answers) for example in examples]
        answers = [each for example in examples for each in example.answers]
        return QuestionBatch(
            pixels=stack_views([example.pixels for example in examples]),
            text=self.text.encode_plain([example.question for example in examples]),
            answers=self.answers.encode_plain([answer for answer, _ in answers]),
            question_of_answer=torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)),
            weights=torch.tensor([weight for _, weight in answers]),
            valid=valid,
            **made,
        )
