"""Image-text and video-text retrieval as a task: fine-tuning with contrastive and matching losses, recall after re-ranking."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field

from dataset.captioned import CaptionedImages, CaptionedSplitConfig, read_captioned_images
from dataset.finetune import EvaluationView, check_medium, frame_sampler
from dataset.retrieval import RetrievalBatches, RetrievalDataConfig
from dataset.video import FrameSampler, VideoSource, check_backend, check_held_out
from engine.checkpoint import Checkpoint
from models.retrieval import RetrievalModel
from models.xvlm import AligningConfig
from tasks import synthetic
from tasks.common import FineTuneConfig, FineTuneTask, HeldOutConfig
from tasks.retrieval_evaluation import RetrievalEvaluation
from utils.batch import RetrievalBatch


class RetrievalEvaluationConfig(HeldOutConfig[CaptionedSplitConfig]):
    """Also how many candidates the fusion encoder re-ranks."""

    candidates: int = Field(ge=1, description="k: candidates of each image and each text that are re-ranked")
    shuffle_frames: bool = Field(
        False, description="show videos with their frames out of order: does the model look at the order?"
    )


class RetrievalConfig(FineTuneConfig):
    """A retrieval run."""

    task: Literal["retrieval"] = "retrieval"
    model: AligningConfig
    data: RetrievalDataConfig
    evaluation: RetrievalEvaluationConfig


class RetrievalTask(FineTuneTask[RetrievalConfig, RetrievalModel]):
    """Model, data and measures of a retrieval run."""

    measure = "mean recall"
    make_batches = RetrievalBatches
    takes_videos = True

    def __init__(self, config: RetrievalConfig, checkpoint: Checkpoint | None = None):
        if config.model.vision.video is not None:
            check_backend(config.data.video, "data.video")
        super().__init__(config, checkpoint)
        for key, items in self.splits.items():
            check_medium(items.images, self.frames, key)
            videos = [source for source in items.images if isinstance(source, VideoSource)]
            check_held_out(videos, config.data.video, config.data.max_pixels, key)

    @staticmethod
    def build_model(config: RetrievalConfig, vocab_size: int | None) -> RetrievalModel:
        return RetrievalModel(config.model, vocab_size)

    @staticmethod
    def synthetic_batch(config: RetrievalConfig, model: RetrievalModel) -> RetrievalBatch:
        rows = config.data.batch_size
        return RetrievalBatch(
            pixels=synthetic.views(rows, config.model.vision),
            text=synthetic.text(rows, config.data.text.max_tokens, len(model.text.word_embeddings)),
            group=torch.arange(rows),
            valid=synthetic.all_count(rows),
        )

    @staticmethod
    def read_split(split: CaptionedSplitConfig, key: str) -> CaptionedImages:
        return read_captioned_images(split, key, 0.0)

    def evaluation_view(self) -> EvaluationView:
        size, shuffle = self.config.model.vision.image_size, self.config.evaluation.shuffle_frames
        return EvaluationView(size, self.config.data.max_pixels, self.sampler(), shuffle_frames=shuffle)

    def sampler(self) -> FrameSampler | None:
        return frame_sampler(self.config.data.video, self.frames, self.config.data.max_pixels)

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
