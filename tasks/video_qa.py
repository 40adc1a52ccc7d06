"""The video question answering task: classification over candidate answers, evaluated by accuracy over all questions (appendix
A.1 of the paper)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from batches.texts import Text
from dataset.config import VideoQuestionsConfig
from dataset.media.sources import ImageSource, VideoSource
from dataset.media.views import EvaluationView
from dataset.tasks.finetune import cleaned_question
from dataset.tasks.questions import Question, QuestionTable
from dataset.tasks.video_qa import VideoQABatches, read_classes, read_video_questions
from engine.run_plan import RunPlan
from models.tasks.video_qa import VideoQAModel
from tasks.base import ANSWERS, Parts
from tasks.config import VideoQAConfig
from tasks.drawing import ImageReader, Panel
from tasks.evaluation import Evaluation, Metric, count
from tasks.finetune import HeldOut, data_options
from tasks.image_blind import ImageBlindBaseline
from tasks.inference import require_finite
from tasks.media import MediaTask
from tasks.vqa import accuracies, distinct_images, question_panel
from utils.files import write_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class VideoQATask(MediaTask[VideoQAConfig, VideoQAModel, VideoQABatches]):
    """Model, data and evaluation of a video question answering run.

    Attributes:
        classes: the candidate answers, by label.
        image_blind: baseline that answers from the wording alone; None in an evaluation without training data.
    """

    network = VideoQAModel
    measure = "accuracy"
    reads_training_data_to_evaluate = True

    def __init__(self, config: VideoQAConfig, parts: Parts[VideoQAModel, VideoQABatches], held_out: HeldOut):
        super().__init__(config, parts, held_out)
        self.classes = _classes(config)
        training = parts.training
        self.image_blind = None if training is None else ImageBlindBaseline(training.items, held_out.by_key().values())

    def keep_inputs(self, folder: Path) -> None:
        super().keep_inputs(folder)
        write_text(folder / ANSWERS, json.dumps(self.classes, ensure_ascii=False) + "\n")

    @staticmethod
    def training_data(
        config: VideoQAConfig, tokenizer: PreTrainedTokenizerFast, model: VideoQAModel, plan: RunPlan
    ) -> VideoQABatches:
        return VideoQABatches(config.data, classes=_classes(config), **data_options(config, tokenizer))

    @staticmethod
    def read_split(config: VideoQAConfig, split: VideoQuestionsConfig, key: str) -> QuestionTable:
        return QuestionTable(read_video_questions(split, key, 0.0, answered=False))

    @staticmethod
    def sources(items: QuestionTable) -> Sequence[ImageSource | VideoSource]:
        return items.sources()

    def evaluate(self, items: QuestionTable) -> Evaluation:
        """Computes the fraction of questions answered correctly, overall and by answer type, each with its image-blind baseline.
        Questions whose answer is not a candidate count as wrong. The chance level is the accuracy of a random candidate."""
        predicted = [self.classes[label] for label in self._predict(items)]
        questions = list(items)
        predictions = [
            {"question_id": question.question_id, "answer": answer}
            for question, answer in zip(questions, predicted, strict=True)
        ]
        metrics = [count("questions", len(questions))]
        if not all(question.answers for question in questions):
            return Evaluation(tuple(metrics), predictions)
        answers = [question.most_frequent() for question in questions]
        right = np.array([true == answer for true, answer in zip(answers, predicted, strict=True)])
        blind = self.image_blind
        guessed = None if blind is None else self.image_blind_scores(blind, questions)
        listed = set(self.classes)
        known = np.array([answer in listed for answer in answers])
        metrics += accuracies(questions, right, known / len(self.classes), guessed, "exact match with the answer")
        metrics.append(Metric("answer is a candidate", float(known.mean())))
        return Evaluation(tuple(metrics), predictions)

    @staticmethod
    def image_blind_scores(blind: ImageBlindBaseline, questions: Sequence[Question]) -> np.ndarray:
        """Returns whether the baseline answers each question correctly (N,). All questions must have answers."""
        return np.array([blind.answer(question) == question.most_frequent() for question in questions])

    def panel(self, items: QuestionTable, number: int, prediction: Mapping[str, Any], read: ImageReader) -> Panel:
        question, answer = items[number], prediction["answer"]
        score = float(answer == question.most_frequent()) if question.answers else None
        return question_panel(question, answer, score, read)

    def _predict(self, items: QuestionTable) -> np.ndarray:
        """Predicts the label of the most likely answer to every question."""

        def answer(videos: list[Tensor], text: Text) -> Tensor:
            distinct, video_of_question = distinct_images(videos)
            logits = self.model.classify(self.stacked(distinct), text, video_of_question.to(text.ids.device))
            return require_finite(logits, "logits of answers").argmax(dim=1)

        return self.outputs(items, partial(_read, LastVideo()), answer, "answering")


def _classes(config: VideoQAConfig) -> list[str]:
    return read_classes(config.evaluation.answers, "evaluation.answers", config.model.classes)


class LastVideo:
    """Caches the frames of the most recently read video. Files list the questions about a video together, and reading a video is
    the most expensive step."""

    def __init__(self) -> None:
        self.path: Path | None = None
        self.frames: Tensor | None = None

    def __call__(self, view: EvaluationView, source: ImageSource | VideoSource) -> Tensor:
        if self.frames is None or source.path is None or source.path != self.path:
            self.frames, self.path = view(source), source.path
        return self.frames


def _read(
    last: LastVideo, view: EvaluationView, max_words: int, items: Sequence[Question], index: int
) -> tuple[Tensor, str]:
    """Returns the frames (F, 3, S, S) and the cleaned question."""
    item = items[index]
    return last(view, item.source), cleaned_question(item.question, max_words)
