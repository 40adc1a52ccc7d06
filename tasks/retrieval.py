"""Image-text and video-text retrieval as a task: fine-tuning with contrastive and matching losses, recall after re-ranking."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Literal

from pydantic import Field
from torch import Tensor

from dataset.formats.captioned import CaptionedImages, CaptionedSplitConfig, read_captioned_images
from dataset.media.video import VideoSource
from dataset.media.views import EvaluationView
from dataset.records.schema import ImageSource
from dataset.tasks.finetune import cleaned, in_batches
from dataset.tasks.retrieval import RetrievalBatches, RetrievalDataConfig
from metrics.retrieval import chance_recalls, retrieval_recalls
from models.align import AligningConfig
from models.retrieval import RetrievalModel
from tasks.base import video_frames
from tasks.evaluation import Evaluation, Metric, count
from tasks.finetune import data_options, place_of
from tasks.kinds import TaskKind
from tasks.media import MediaConfig, MediaEvaluationConfig, MediaTask
from tasks.two_stage import TwoStageRetrieval

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class RetrievalEvaluationConfig(MediaEvaluationConfig[CaptionedSplitConfig]):
    """Held-out splits of retrieval, and how many candidates the fusion encoder re-ranks."""

    candidates: int = Field(ge=1, description="k: candidates of each image and each text that are re-ranked")


class RetrievalConfig(MediaConfig):
    """A retrieval run."""

    task: Literal["retrieval"] = Field("retrieval", description="the task that the config is of")
    model: AligningConfig
    data: RetrievalDataConfig
    evaluation: RetrievalEvaluationConfig


class RetrievalTask(MediaTask[RetrievalConfig, RetrievalModel, RetrievalBatches]):
    """Model, data and evaluation of a retrieval run."""

    measure = "mean recall"

    @staticmethod
    def build_model(config: RetrievalConfig, vocab_size: int | None) -> RetrievalModel:
        return RetrievalModel(config.model, vocab_size)

    @staticmethod
    def training_data(
        config: RetrievalConfig, tokenizer: PreTrainedTokenizerFast, model: RetrievalModel
    ) -> RetrievalBatches:
        return RetrievalBatches(config.data, **data_options(config, tokenizer))

    @staticmethod
    def read_split(config: RetrievalConfig, split: CaptionedSplitConfig, key: str) -> CaptionedImages:
        return read_captioned_images(split, key, 0.0)

    @staticmethod
    def sources(items: CaptionedImages) -> Sequence[ImageSource | VideoSource]:
        return items.images

    def evaluate(self, items: CaptionedImages) -> Evaluation:
        """Recalls after re-ranking and by cosine alone, each beside that of a random order."""
        config = self.config.evaluation
        medium = "image" if video_frames(self.config) is None else "video"
        search = TwoStageRetrieval(self.model, self.text, candidates=config.candidates, batch_size=config.batch_size)
        read = partial(_view_of, self.held_out.view, items.images)
        captions = [
            cleaned(caption, self.text.max_words, items.images[image].place)
            for caption, image in zip(items.captions, items.image_of_caption.tolist(), strict=True)
        ]
        rankings = search.rank(len(items.images), partial(self._read, read, items.images), captions)
        metrics = [count(f"{medium}s", len(items.images)), count("captions", len(captions))]
        chance = chance_recalls(items.captions_per_image, len(captions), medium)
        for suffix, stage in (("", rankings.reranked), (" (cosine)", rankings.cosine)):
            recalls = retrieval_recalls(*stage.ranks(items.image_of_caption), medium)
            metrics += [Metric(f"{name}{suffix}", value, chance[name]) for name, value in recalls.items()]
        return Evaluation(tuple(metrics))

    def _read(
        self, read: Callable[[int], Tensor], images: Sequence[ImageSource | VideoSource], share: range
    ) -> Iterator[list[Tensor]]:
        size, workers = self.config.evaluation.batch_size, self.config.data.workers
        return in_batches(read, share, size, workers, partial(place_of, images))


def _view_of(view: EvaluationView, images: Sequence[ImageSource | VideoSource], index: int) -> Tensor:
    return view(images[index])


TASK = TaskKind(RetrievalConfig, RetrievalTask)
