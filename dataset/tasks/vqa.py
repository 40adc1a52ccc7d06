"""Question answering data: questions with their answers, of every format."""

from __future__ import annotations

import hashlib
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
"""Of the one answer to a question of Visual Genome (released)."""

COMMON = 9
"""Questions that an answer is the most frequent one of, at least, to be a candidate: the rule that gave VQA v2's list."""


class QuestionsConfig(Config):
    """A source of questions.

    Of ``format: records``, ``questions`` is a JSON array or JSON lines of ``{"question_id", "question", "image", "answer"}``, the
    answer a text or a list with that of every annotator.
    """

    format: Literal["records", "vqa2", "visual_genome", "gqa", "gqa_lxmert"] = Field(
        "records",
        description="records: of one's own; vqa2: VQA v2's questions, with images below `images` as in the official layout "
        "(train2014/COCO_train2014_….jpg); visual_genome: question_answers.json (<image_id>.jpg, in VG_100K and VG_100K_2 too); "
        "gqa: a file of GQA or xGQA (gqa/images/<imageId>.jpg); gqa_lxmert: GQA as LXMERT has it",
    )
    questions: InputFile = Field(description="file of the questions")
    annotations: InputFile | None = Field(
        None, description="VQA v2's file of annotations, which has the answers; null: there are none"
    )
    images: InputFolder | None = Field(None, description="folder of relative paths; null: that of `questions`")
    weight: float | None = Field(
        None,
        gt=0,
        description="factor of the answers' losses; null: 0.5 for Visual Genome's questions and 1 for others",
    )
    image_share: tuple[float, float] = Field(
        (0.0, 1.0),
        description="part of the images that is read, with all their questions. The hash of an image's name is a "
        "number in 0..1; images from the first number up to the second are read. So [0, 0.05] can be held out from [0.05, 1]",
    )

    @model_validator(mode="after")
    def _share_is_not_empty(self) -> QuestionsConfig:
        low, high = self.image_share
        if not 0 <= low < high <= 1:
            raise ValueError(f"image_share is [{low:g}, {high:g}]; it should be two rising numbers within 0 and 1")
        return self

    @model_validator(mode="after")
    def _keys_fit_the_format(self) -> QuestionsConfig:
        if self.annotations is not None and self.format != "vqa2":
            raise ValueError(
                f"format is {self.format}, and annotations are of VQA v2; drop annotations, or set format: vqa2"
            )
        return self


class VQADataConfig(QuestionsDataConfig):
    """Training questions."""

    train: list[QuestionsConfig] = Field(
        min_length=1, description="sources; an epoch takes each question of each source once"
    )
    max_answer_tokens: int = Field(
        40, ge=3, description="most tokens of an answer, [CLS] and [SEP] counted; the rest is cut off"
    )
    augment: AugmentConfig = Field(
        default_factory=lambda: AugmentConfig(scale=(0.5, 1.0)), description="augmentation of the images"
    )


def read_questions(config: QuestionsConfig, key: str, max_broken: float, *, answered: bool) -> list[Question]:
    """Read and check a source; every image is looked for.

    Args:
        config: the source.
        key: the config key that names it.
        max_broken: the share of broken rows that is tolerated.
        answered: without answers a question is broken. Otherwise all may have some, or none.

    Raises:
        UserError: with the config ``key``: a file cannot be used, too many rows are broken, no image is of the wanted share, or
            only some questions have answers.
    """
    if answered and config.format == "vqa2" and config.annotations is None:
        raise UserError(f"{key}: {config.questions} has VQA v2's questions without answers; give `annotations` too")
    images = ImageFiles(images_folder(config.images, config.questions))
    paths: dict[str, Path] = {}

    def parse(row: Row) -> Question:
        source = images.find(row.get("image", str), row.location)
        assert source.path is not None
        # There are many questions about an image: they share its path.
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
    if share == (0.0, 1.0):
        return True
    digest = hashlib.blake2b(str(row.values.get("image")).encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return share[0] <= int.from_bytes(digest, "big") / 2**64 < share[1]


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
    """Candidates made of training answers, the most frequent first: those that are, normalised, the answer of most annotators
    to ``at_least`` questions. Beside questions with several annotators, those with a single one, as Visual Genome's, have no say
    (as in VQA v2's list)."""
    single, several = Counter[str](), Counter[str]()
    for question in questions:
        (several if len(question.answers) > 1 else single)[normalise(question.most_frequent())] += 1
    counts = several or single
    kept = [answer for answer, count in counts.items() if count >= at_least and answer]
    return sorted(kept, key=lambda answer: (-counts[answer], answer))


class VQABatches(QuestionBatches[VQADataConfig]):
    """Every question of all sources once an epoch, with all its answers."""

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

    def collate(self, examples: Sequence[QuestionExample], valid: Tensor, **account: Any) -> QuestionBatch:
        answers = self.answers.encode_plain([text for text, _ in given_answers(examples)])
        return QuestionBatch(answers=answers, **self.fields(examples, valid), **account)
