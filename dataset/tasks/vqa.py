"""Question answering data: questions with their answers, in all supported formats."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator
from torch import Tensor

from batches.questions import QuestionBatch
from dataset.formats import iglue, visual_genome, vqa2
from dataset.formats.annotations import ImageFiles, Row, images_folder, parse_rows, read_json, read_records
from dataset.image_share import is_in_share
from dataset.media.augment import AugmentConfig
from dataset.media.views import TrainingView
from dataset.records.schema import BrokenRecordError
from dataset.tasks.question_batches import QuestionBatches, QuestionExample, QuestionsDataConfig, given_answers
from dataset.tasks.questions import Question, QuestionTable, check_all_answered_or_none, question_of
from dataset.text.processors import PlainTextProcessor, TextLimits
from utils.config import Config
from utils.errors import UserError
from utils.inputs import InputFile, InputFolder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

logger = logging.getLogger(__name__)

GENOME_WEIGHT = 0.5
"""Weight of the single answer to a question of Visual Genome, as in the authors' code."""

COMMON = 9
"""An answer becomes a candidate if it is the most frequent answer to at least this number of questions. VQA v2's list was made by
this criterion."""


class QuestionsConfig(Config):
    """A source of questions.

    With ``format: records``, ``questions`` is a JSON array or JSON lines of ``{"question_id", "question", "image", "answer"}``.
    The answer is a text, or a list with the answer of each annotator.
    """

    format: Literal["records", "vqa2", "visual_genome", "gqa", "gqa_lxmert"] = Field(
        "records",
        description="records: your own questions; vqa2: VQA v2's questions, with the official layout of images in `images` "
        "(train2014/COCO_train2014_….jpg); visual_genome: question_answers.json (<image_id>.jpg, also in VG_100K and VG_100K_2); "
        "gqa: a file of GQA or xGQA (gqa/images/<imageId>.jpg); gqa_lxmert: GQA in LXMERT's format",
    )
    questions: InputFile = Field(description="file of the questions")
    annotations: InputFile | None = Field(
        None, description="VQA v2's annotation file, which contains the answers; null: no answers"
    )
    images: InputFolder | None = Field(
        None, description="folder that relative image paths start from; null: the folder of `questions`"
    )
    weight: float | None = Field(
        None,
        gt=0,
        description="factor of the losses of the answers; null: 0.5 for questions of Visual Genome and 1 for others",
    )
    image_share: tuple[float, float] = Field(
        (0.0, 1.0),
        description="part of the images to read, with all their questions. The hash of an image's name is a number in 0..1; "
        "images from the first number up to the second are read. For example, [0, 0.05] can be held out from [0.05, 1]",
    )

    @model_validator(mode="after")
    def _share_is_not_empty(self) -> QuestionsConfig:
        low, high = self.image_share
        if not 0 <= low < high <= 1:
            raise ValueError(f"image_share is [{low:g}, {high:g}]; set it to two increasing numbers between 0 and 1")
        return self

    @model_validator(mode="after")
    def _keys_fit_the_format(self) -> QuestionsConfig:
        if self.annotations is not None and self.format != "vqa2":
            raise ValueError(
                f"format is {self.format}, but annotations belong to VQA v2; remove annotations, or set format: vqa2"
            )
        return self


class VQADataConfig(QuestionsDataConfig):
    """Training questions."""

    train: list[QuestionsConfig] = Field(
        min_length=1, description="sources of questions; an epoch contains every question of every source once"
    )
    max_answer_tokens: int = Field(
        40, ge=3, description="maximum number of tokens in an answer, including [CLS] and [SEP]; the rest is cut off"
    )
    augment: AugmentConfig = Field(
        default_factory=lambda: AugmentConfig(scale=(0.5, 1.0)), description="augmentation of the images"
    )


def read_questions(config: QuestionsConfig, key: str, max_broken: float, *, answered: bool) -> list[Question]:
    """Reads and checks a source of questions. Every image must exist.

    Args:
        config: the source.
        key: config key of the source, to name in error messages.
        max_broken: maximum fraction of broken rows.
        answered: if True, a question without answers is broken. If False, either all questions have answers or none has.

    Raises:
        UserError: if a file cannot be used, too many rows are broken, no image is in ``image_share``, or only some questions have
            answers. The message names the config ``key``.
    """
    if answered and config.format == "vqa2" and config.annotations is None:
        raise UserError(f"{key}: {config.questions} has VQA v2's questions without answers; set `annotations` too")
    images = ImageFiles(images_folder(config.images, config.questions))
    paths: dict[str, Path] = {}

    def parse(row: Row) -> Question:
        source = images.find(row.get("image", str), row.location)
        assert source.path is not None
        # There are many questions about an image, so they share its path to save memory.
        shared = replace(source, path=paths.setdefault(row.values["image"], source.path))
        is_genome = config.format == "visual_genome" or row.values.get("dataset") == "vg"
        weight = config.weight or (GENOME_WEIGHT if is_genome else 1.0)
        return question_of(row, shared, answered=answered, weight=weight)

    rows = _rows(config, key, images)
    wanted = (row for row in rows if isinstance(row, BrokenRecordError) or _is_taken(row, config.image_share))
    questions = parse_rows(wanted, parse, key, max_broken)
    if not questions:
        raise UserError(f"{key}: no image of {config.questions} is within image_share: {list(config.image_share)}")
    check_all_answered_or_none(questions, key)
    return questions


def _rows(config: QuestionsConfig, key: str, images: ImageFiles) -> Iterable[Row | BrokenRecordError]:
    if config.format == "vqa2":
        return vqa2.question_rows(config.questions, config.annotations, key)
    if config.format == "visual_genome":
        return visual_genome.question_rows(config.questions, images, key)
    if config.format == "gqa":
        return iglue.gqa_rows(config.questions, key)
    if config.format == "gqa_lxmert":
        return iglue.gqa_lxmert_rows(config.questions, key)
    return read_records(config.questions, key, ("vqa2", "visual_genome", "gqa", "gqa_lxmert"))


def _is_taken(row: Row, share: tuple[float, float]) -> bool:
    return share == (0.0, 1.0) or is_in_share(str(row.values.get("image")), share)


def read_candidates(path: str, key: str) -> list[str]:
    """Reads the candidate answers from a JSON list, or from the keys of a JSON object from answer to label.

    Duplicates, null and blank texts are dropped. (The published list has a null among its 3,129 entries.)

    Raises:
        UserError: if the file cannot be read or has a different format. The message names the config ``key``.
    """
    content = read_json(path, key)
    listed = list(content) if isinstance(content, dict | list) else None
    if isinstance(content, dict) and not all(type(label) is int for label in content.values()):
        listed = None
    if listed is None or not all(entry is None or isinstance(entry, str) for entry in listed):
        raise UserError(f"{key}: {path} is neither a JSON list of texts nor a JSON object from text to label")
    candidates = list(dict.fromkeys(entry for entry in listed if entry is not None and entry.strip()))
    if not candidates:
        raise UserError(f"{key}: {path} has no candidate answer")
    if len(candidates) < len(listed):
        logger.warning(
            "%s: %d of %d entries of %s are null, empty or repeated",
            key,
            len(listed) - len(candidates),
            len(listed),
            path,
        )
    return candidates


def frequent_answers(
    questions: Iterable[Question], normalise: Callable[[str], str], at_least: int = COMMON
) -> list[str]:
    """Selects candidate answers from training answers, most frequent first.

    A candidate is, after normalisation, the most frequent answer to at least ``at_least`` questions. If some questions have
    several annotators, questions with a single one, such as in Visual Genome, are not counted (as in VQA v2's list).
    """
    single, several = Counter[str](), Counter[str]()
    for question in questions:
        (several if len(question.answers) > 1 else single)[normalise(question.most_frequent())] += 1
    counts = several or single
    kept = [answer for answer, count in counts.items() if count >= at_least and answer]
    return sorted(kept, key=lambda answer: (-counts[answer], answer))


class VQABatches(QuestionBatches[VQADataConfig]):
    """Batches of questions with all their answers. An epoch contains every question of all sources once."""

    def __init__(self, data: VQADataConfig, *, tokenizer: PreTrainedTokenizerFast, **options: Any):
        self.answers = PlainTextProcessor(tokenizer, TextLimits(max_tokens=data.max_answer_tokens))
        super().__init__(data, tokenizer=tokenizer, **options)

    def read_questions(self, data: VQADataConfig) -> QuestionTable:
        return QuestionTable(
            [
                question
                for number, source in enumerate(data.train)
                for question in read_questions(source, f"data.train[{number}]", data.max_broken, answered=True)
            ]
        )

    def make_view(self, data: VQADataConfig) -> TrainingView:
        return TrainingView(self.image_size, data.max_pixels, data.augment, pixels=data.pixels)

    def collate(self, examples: Sequence[QuestionExample], valid: Tensor, **fields: Any) -> QuestionBatch:
        answers = self.answers.encode_plain([text for text, _ in given_answers(examples)])
        return QuestionBatch(answers=answers, **self.fields(examples, valid), **fields)
