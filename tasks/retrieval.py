"""Image-text and video-text retrieval as a task: fine-tuning with contrastive and matching losses, recall after re-ranking."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from dataset.captioned import CaptionedImages, CaptionedSplitConfig, read_captioned_images
from dataset.records import ImageSource
from dataset.retrieval import RetrievalBatches, RetrievalDataConfig
from dataset.video import VideoSource
from models.align import AligningConfig
from models.retrieval import RetrievalModel
from tasks.media import MediaConfig, MediaEvaluationConfig, MediaTask
from tasks.retrieval_evaluation import RetrievalEvaluation


class RetrievalEvaluationConfig(MediaEvaluationConfig[CaptionedSplitConfig]):
    """Also how many candidates the fusion encoder re-ranks."""

    candidates: int = Field(ge=1, description="k: candidates of each image and each text that are re-ranked")


class RetrievalConfig(MediaConfig):
    """A retrieval run."""

    task: Literal["retrieval"] = "retrieval"
    model: AligningConfig
    data: RetrievalDataConfig
    evaluation: RetrievalEvaluationConfig


class RetrievalTask(MediaTask[RetrievalConfig, RetrievalModel]):
    """Model, data and measures of a retrieval run."""

    measure = "mean recall"
    make_batches = RetrievalBatches

    @staticmethod
    def build_model(config: RetrievalConfig, vocab_size: int | None) -> RetrievalModel:
        return RetrievalModel(config.model, vocab_size)

    @staticmethod
    def read_split(split: CaptionedSplitConfig, key: str) -> CaptionedImages:
        return read_captioned_images(split, key, 0.0)

    @staticmethod
    def sources(items: CaptionedImages) -> Sequence[ImageSource | VideoSource]:
        return items.images

    def measures(self, items: CaptionedImages) -> dict[str, float]:
        evaluation = RetrievalEvaluation(
            self.model,
            self.text,
            self.view,
            candidates=self.config.evaluation.candidates,
            batch_size=self.config.evaluation.batch_size,
            workers=self.config.data.workers,
        )
        found = evaluation.metrics(items)
        return found if self.frames is None else {name.replace("image", "video"): each for name, each in found.items()}
