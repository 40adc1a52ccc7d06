"""Question answering data: questions with their answers, in all supported formats."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from batches.base import BrokenRecord
from batches.questions import QuestionBatch
from dataset.config import QuestionsConfig, TextLimits, VQADataConfig
from dataset.formats import iglue, visual_genome, vqa2
from dataset.formats.annotations import ImageFiles, Row, images_folder, parse_rows, read_json, read_records
from dataset.image_share import is_in_share
from dataset.media.views import TrainingView
from dataset.tasks.question_batches import QuestionBatches, QuestionExample, given_answers
from dataset.tasks.questions import Question, QuestionTable, check_all_answered_or_none, question_of
from dataset.text.processors import PlainTextProcessor
from utils.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

logger = logging.getLogger(__name__)

GENOME_WEIGHT = 0.5
"""Weight of the single answer to a question of Visual Genome, as in the authors' code."""

COMMON = 9
"""An answer becomes a candidate if it is the most frequent answer to at least this number of questions. VQA v2's list was made by
this criterion."""


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
        raise UserError(
            f"{config.questions} has VQA v2's questions without answers", where=key, remedy="set `annotations` too"
        )
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
    wanted = (row for row in rows if isinstance(row, BrokenRecord) or _is_taken(row, config.image_share))
    questions = parse_rows(wanted, parse, key, max_broken, f"{images.folder} ({key}.images)")
    if not questions:
        raise UserError(f"no image of {config.questions} is within image_share: {list(config.image_share)}", where=key)
    check_all_answered_or_none(questions, key)
    return questions


def _rows(config: QuestionsConfig, key: str, images: ImageFiles) -> Iterable[Row | BrokenRecord]:
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
        raise UserError(f"{path} is neither a JSON list of texts nor a JSON object from text to label", where=key)
    candidates = list(dict.fromkeys(entry for entry in listed if entry is not None and entry.strip()))
    if not candidates:
        raise UserError(f"{path} has no candidate answer", where=key)
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
                for question in read_questions(source, f"{self.key}[{number}]", data.max_broken, answered=True)
            ]
        )

    def make_view(self, data: VQADataConfig) -> TrainingView:
        return TrainingView(self.image_size, data.max_pixels, data.augment, pixels=data.pixels)

    def collate(self, examples: Sequence[QuestionExample], valid: Tensor, **fields: Any) -> QuestionBatch:
        answers = self.answers.encode_plain([text for text, _ in given_answers(examples)])
        return QuestionBatch(answers=answers, **self.fields(examples, valid), **fields)
