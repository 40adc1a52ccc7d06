"""Video question answering as a task: classification over candidate answers, accuracy over all questions (appendix A.1)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from dataset.finetune import EvaluationView, cleaned_question
from dataset.video import VideoSource
from dataset.video_qa import (
    VideoQABatches,
    VideoQADataConfig,
    VideoQuestion,
    VideoQuestionsConfig,
    read_classes,
    read_video_questions,
)
from engine.checkpoint import Checkpoint
from models.video_qa import VideoQAModel, VideoQAModelConfig
from tasks.media import MediaConfig, MediaEvaluationConfig, MediaTask
from tasks.vqa import by_answer_type, picture_of_each
from utils.batch import Text


class VideoQAEvaluationConfig(MediaEvaluationConfig[VideoQuestionsConfig]):
    """Splits without answers are answered and not measured."""

    answers: str = Field(description="the candidate answers: a JSON list, or an object from answer to label")


class VideoQAConfig(MediaConfig):
    """A video question answering run."""

    task: Literal["video_qa"] = "video_qa"
    model: VideoQAModelConfig
    data: VideoQADataConfig
    evaluation: VideoQAEvaluationConfig

    @model_validator(mode="after")
    def _has_frames(self) -> VideoQAConfig:
        if self.model.vision.video is None:
            raise ValueError("video question answering needs model.vision.video.frames")
        return self


class VideoQATask(MediaTask[VideoQAConfig, VideoQAModel]):
    """Model, data and measures of a video question answering run."""

    measure = "accuracy"
    make_batches = VideoQABatches

    commonest: str | None = None
    """The most frequent training answer; None where an evaluation finds no training data."""

    def __init__(self, config: VideoQAConfig, checkpoint: Checkpoint | None = None, *, trains: bool = True):
        self.classes = read_classes(config.evaluation.answers, "evaluation.answers", config.model.classes)
        super().__init__(config, checkpoint, trains=trains)
        if not trains:
            self.look_for_training_data()

    @staticmethod
    def build_model(config: VideoQAConfig, vocab_size: int | None) -> VideoQAModel:
        return VideoQAModel(config.model, vocab_size)

    @staticmethod
    def read_split(split: VideoQuestionsConfig, key: str) -> list[VideoQuestion]:
        return read_video_questions(split, key, 0.0, answered=False)

    def batches(self) -> VideoQABatches:
        made = VideoQABatches(
            self.config.data,
            classes=self.classes,
            tokenizer=self.tokenizer,
            image_size=self.config.model.vision.image_size,
            seed=self.config.seed,
            frames=self.frames,
        )
        answers = Counter(item.answer for item in made.items)
        self.commonest = answers.most_common(1)[0][0]
        return made

    @staticmethod
    def sources(items: list[VideoQuestion]) -> list[VideoSource]:
        return [item.video for item in items]

    def measures(self, items: list[VideoQuestion]) -> dict[str, float]:
        """The share of all questions whose answer is met to the letter, those that no candidate answers included, overall and
        by type of answer. Chance: a candidate drawn at random. Beside it, what the most frequent training answer gives."""
        predicted = [self.classes[label] for label in self._predict(items)]
        self.predictions = [
            {"question_id": item.question_id, "answer": answer} for item, answer in zip(items, predicted, strict=True)
        ]
        results: dict[str, float] = {"questions": len(items)}
        if not all(item.answer for item in items):
            return results
        right = np.array([item.answer == answer for item, answer in zip(items, predicted, strict=True)])
        listed = set(self.classes)
        known = np.array([item.answer in listed for item in items])
        for name, chosen in by_answer_type([item.answer_type for item in items]).items():
            prefix = f"{name}: " if name else ""
            results[f"{prefix}accuracy"] = float(right[chosen].mean())
            results[f"{prefix}accuracy/chance"] = float(known[chosen].mean()) / len(self.classes)
            if name:
                results[f"{name} questions"] = int(chosen.sum())
        if self.commonest is not None:
            results[f'always "{self.commonest}"'] = float(np.mean([item.answer == self.commonest for item in items]))
        results["answer is a candidate"] = float(known.mean())
        return results

    def _predict(self, items: list[VideoQuestion]) -> np.ndarray:
        """The label of every question's likeliest answer."""

        def answer(videos: list[Tensor], text: Text) -> Tensor:
            rows = picture_of_each(videos)
            pixels = torch.stack([videos[place] for place in np.unique(rows, return_index=True)[1]])
            device = text.ids.device
            logits = self.model.classify(pixels.to(device), text, torch.from_numpy(rows).to(device))
            return logits.argmax(dim=1)

        return self.outputs(items, partial(_read, LastVideo()), answer, "answering")


class LastVideo:
    """The frames of the video that was read last: files list the questions about a video together, and reading it is what costs
    most."""

    def __init__(self) -> None:
        self.source: VideoSource | None = None
        self.frames: Tensor | None = None

    def __call__(self, view: EvaluationView, source: VideoSource) -> Tensor:
        if self.frames is None or source != self.source:
            self.frames, self.source = view(source), source
        return self.frames


def _read(
    last: LastVideo, view: EvaluationView, max_words: int, items: Sequence[VideoQuestion], index: int
) -> tuple[Tensor, str]:
    """The frames (F, 3, S, S) and the cleaned question."""
    item = items[index]
    return last(view, item.video), cleaned_question(item.question, max_words, item.place)
