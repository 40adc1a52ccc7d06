"""Image-text retrieval as a task: fine-tuning with contrastive and matching losses, recall after re-ranking."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from dataset.finetune import EvaluationView
from dataset.loaders import LoadingConfig
from dataset.retrieval import (
    CaptionedImages,
    RetrievalBatches,
    RetrievalDataConfig,
    RetrievalSplitConfig,
    read_captioned_images,
)
from dataset.text import PlainTextProcessor
from models.retrieval import RetrievalModel
from tasks.common import FineTuneTask, HeldOutConfig, RunConfig
from tasks.retrieval_evaluation import RetrievalEvaluation


class RetrievalEvaluationConfig(HeldOutConfig):
    """Splits to measure, and how many candidates the fusion encoder re-ranks."""

    validation: RetrievalSplitConfig | None = Field(None, description="selects the weights; null: the last ones count")
    test: dict[str, RetrievalSplitConfig] = Field(min_length=1, description="splits to report on, by name")
    candidates: int = Field(ge=1, description="k: candidates of each image and each text that are re-ranked")


class RetrievalConfig(RunConfig):
    """A retrieval run."""

    task: Literal["retrieval"] = "retrieval"
    data: RetrievalDataConfig
    evaluation: RetrievalEvaluationConfig


class RetrievalTask(FineTuneTask[RetrievalConfig, RetrievalModel]):
    """Model, data and measures of a retrieval run."""

    measure = "mean recall"

    @staticmethod
    def build_model(config: RetrievalConfig, vocab_size: int | None) -> RetrievalModel:
        return RetrievalModel(config.model, vocab_size)

    @property
    def loading(self) -> LoadingConfig:
        return self.config.data

    @property
    def evaluation(self) -> RetrievalEvaluationConfig:
        return self.config.evaluation

    def batches(self) -> RetrievalBatches:
        return RetrievalBatches(
            self.config.data,
            tokenizer=self.tokenizer,
            image_size=self.config.model.vision.image_size,
            seed=self.config.seed,
        )

    def read_held_out(self) -> dict[str, Any]:
        return {
            name: read_captioned_images(split, f"evaluation.test.{name}", 0.0)
            for name, split in self.evaluation.test.items()
        }

    def read_validation(self) -> CaptionedImages | None:
        split = self.evaluation.validation
        return None if split is None else read_captioned_images(split, "evaluation.validation", 0.0)

    def measures(self, items: CaptionedImages) -> dict[str, float]:
        evaluation = RetrievalEvaluation(
            self.model,
            PlainTextProcessor(self.tokenizer, self.config.data.text),
            EvaluationView(self.config.model.vision.image_size, self.config.data.max_pixels),
            candidates=self.evaluation.candidates,
            batch_size=self.evaluation.batch_size,
            workers=self.config.data.workers,
        )
        return evaluation.metrics(items)
