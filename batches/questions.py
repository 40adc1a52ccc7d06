"""Batches for question answering about images or videos."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from batches.base import Batch
from batches.images import Pixels
from batches.texts import Text


@dataclass(frozen=True)
class QuestionBatch(Batch):
    """Questions about images, with answers.

    Attributes:
        pixels: (I, 3, H, W) uint8.
        text: N questions.
        answers: A answers, including [CLS] and [SEP].
        question_of_answer: (A,) int64, index of each answer's question.
        weights: (A,) float32, weights of the answers' losses.
        valid: (N,) bool, True for questions that enter the loss.
        image_of_question: (N,) int64, index of each question's image; if None, question n is about image n.
    """

    pixels: Pixels
    text: Text
    answers: Text
    question_of_answer: Tensor
    weights: Tensor
    valid: Tensor
    image_of_question: Tensor | None = None


@dataclass(frozen=True)
class ClassifiedBatch(Batch):
    """Questions about images or videos, with answers as classes.

    Attributes:
        pixels: (I, 3, H, W) uint8 for images, (I, F, 3, H, W) for videos.
        text: N questions.
        labels: (A,) int64, index of each answer in the candidate list, :data:`IGNORE` if it is not in the list.
        question_of_answer: (A,) int64, index of each answer's question.
        weights: (A,) float32, weights of the answers' losses.
        valid: (N,) bool, True for questions that enter the loss.
        image_of_question: (N,) int64, index of each question's image or video; if None, question n is about image or video n.
    """

    pixels: Pixels
    text: Text
    labels: Tensor
    question_of_answer: Tensor
    weights: Tensor
    valid: Tensor
    image_of_question: Tensor | None = None
