"""Batches of questions about images or videos. Several questions may be about the same image or video."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from batches.images import stack_views
from dataset.config import QuestionsDataConfig
from dataset.media.views import TrainingView
from dataset.tasks.finetune import FILLER_TEXT, FineTuneBatches, cleaned_question
from dataset.tasks.questions import Question, QuestionGroup, QuestionGroups, QuestionTable
from dataset.text.processors import clean_question, mentions_side

D = TypeVar("D", bound=QuestionsDataConfig)


@dataclass(frozen=True)
class QuestionExample:
    """A view of an image (3, H, W) or a video (F, 3, H, W), the token ids of questions about the image or video, and the
    weighted answers to each question."""

    pixels: Tensor
    questions: list[list[int]]
    answers: list[list[tuple[str, float]]]


class QuestionBatches(FineTuneBatches[D, QuestionGroup, QuestionExample]):
    """Batches of questions with all their answers. An epoch contains every question once; see ``data.questions_per_example``.

    Attributes:
        items: all questions.
        groups: for each example, its questions.
    """

    name = "questions"

    @abstractmethod
    def read_questions(self, data: D) -> QuestionTable:
        """Reads and checks the training questions."""

    @abstractmethod
    def make_view(self, data: D) -> TrainingView:
        """Returns the view through which training reads the images or videos of :attr:`items`."""

    def read(self, data: D) -> QuestionGroups:
        self.items = self.read_questions(data)
        self.view = self.make_view(data)
        # An example with a question that mentions left or right is not flipped, so these questions are grouped separately.
        sided = None
        if data.questions_per_example > 1 and data.careful_flip and self.view.config.flip > 0:
            sided = [_names_a_side(clean_question(item.question, self.text.max_words), item) for item in self.items]
        self.groups = QuestionGroups(self.items, data.questions_per_example, sided)
        return self.groups

    def example(self, record: QuestionGroup, rng: np.random.Generator) -> QuestionExample:
        items = record.questions
        questions = [cleaned_question(item.question, self.text.max_words) for item in items]
        may_flip = not (self.data.careful_flip and any(map(_names_a_side, questions, items)))
        pixels = self.view(record.source, rng, may_flip=may_flip)
        ids = [self.text.token_ids(question) for question in questions]
        return QuestionExample(pixels, ids, [item.weighted_answers() for item in items])

    def filler(self) -> QuestionExample:
        return QuestionExample(self.view.filler(), [self.text.token_ids(FILLER_TEXT)], [[(FILLER_TEXT, 0.0)]])

    def fields(self, examples: Sequence[QuestionExample], valid: Tensor) -> dict[str, Any]:
        """Returns the fields that :class:`~batches.questions.QuestionBatch` and
        :class:`~batches.questions.ClassifiedBatch` have in common.

        Args:
            valid: (I,) bool, True for the examples that count.
        """
        questions = torch.tensor([len(example.questions) for example in examples])
        answers = torch.tensor([len(answers) for example in examples for answers in example.answers])
        image_of_question = torch.arange(len(examples)).repeat_interleave(questions)
        return {
            "pixels": stack_views([example.pixels for example in examples], self.image_size),
            "text": self.text.stack_plain([ids for example in examples for ids in example.questions]),
            "question_of_answer": torch.arange(len(answers)).repeat_interleave(answers),
            "weights": torch.tensor([weight for _, weight in given_answers(examples)]),
            "valid": valid[image_of_question],
            "image_of_question": image_of_question if self.data.questions_per_example > 1 else None,
        }


def given_answers(examples: Sequence[QuestionExample]) -> Iterator[tuple[str, float]]:
    """Yields all answers with their weights, in order."""
    return (answer for example in examples for answers in example.answers for answer in answers)


def _names_a_side(cleaned: str, item: Question) -> bool:
    """Returns True if flipping the image would make the question or an answer wrong."""
    return mentions_side(cleaned) or any(map(mentions_side, item.answers))
