"""Synthetic micro-batches of maximum size for every task that can be planned.

To plan a new task, add an entry to :data:`SYNTHETIC`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from batches.base import Batch
from batches.captioning import CaptioningBatch
from batches.grounding import GroundingBatch
from batches.nlvr import StatementBatch
from batches.pretraining import (
    HardNegatives,
    ImageTextBatch,
    LongTexts,
    PretrainBatch,
    RegionBatch,
    TextBatch,
    TranslationBatch,
    VideoTextBatch,
)
from batches.questions import ClassifiedBatch, QuestionBatch
from batches.retrieval import RetrievalBatch
from batches.texts import MaskedText
from dataset.config import DataConfig, ImageRecordsConfig, RegionStreamConfig, StreamConfig, TextDataConfig
from models.core.vision import VisionEncoder
from models.core.xvlm import XVLM
from models.pretraining.model import PretrainModel
from models.tasks.nlvr import NLVRModel
from models.tasks.retrieval import RetrievalModel
from models.tasks.video_qa import VideoQAModel
from models.tasks.vqa import VQAModel
from tasks.config import (
    CaptioningConfig,
    GroundingConfig,
    NLVRConfig,
    PretrainConfig,
    RetrievalConfig,
    VideoQAConfig,
    VQAConfig,
)
from tools.plan import parts
from utils.errors import UserError


def batch_sizes(config: Any) -> dict[str, int]:
    """Returns the config keys that set the size of a micro-batch, with their values. The leading stream comes first.

    Raises:
        UserError: if the config's task has no synthetic batch.
    """
    return _entry(config).sizes(config)


def synthetic_batch(config: Any, model: Any) -> Any:
    """Returns a micro-batch with the sizes in the config.

    Raises:
        UserError: for the reasons listed in :func:`batch_sizes`.
    """
    return _entry(config).batch(config, model)


def scaled(config: Any, examples: int) -> Any:
    """Returns the config with ``examples`` of the leading stream per micro-batch, and the other streams in proportion."""
    sizes = batch_sizes(config)
    leading = next(iter(sizes.values()))
    for key, size in sizes.items():
        config = _with(config, key.split("."), max(1, round(size * examples / leading)))
    return config


def _with(config: Any, keys: list[str], value: int) -> Any:
    name, *rest = keys
    return config.model_copy(update={name: _with(getattr(config, name), rest, value) if rest else value})


def text_limits(data: DataConfig, stream: str) -> TextDataConfig:
    """Returns the text limits for a pre-training stream. Translations may have separate limits."""
    limits = data.translations.text if stream == "translations" and data.translations is not None else None
    return limits or data.text


def pretrain_batch(data: DataConfig, vision: VisionEncoder, vocabulary: int) -> PretrainBatch:
    """Returns a micro-batch of every configured stream."""

    def masked(stream: StreamConfig, limits: TextDataConfig = data.text) -> MaskedText:
        return parts.masked_text(stream.batch_size, limits.max_tokens, limits.max_masks, vocabulary)

    def translations(stream: StreamConfig) -> TranslationBatch:
        limits = text_limits(data, "translations")
        other = parts.text(stream.batch_size, limits.max_tokens, vocabulary)
        return TranslationBatch(masked(stream, limits), other, parts.all_valid(stream.batch_size))

    def long(stream: ImageRecordsConfig) -> LongTexts | None:
        return LongTexts(masked(stream), parts.all_valid(stream.batch_size)) if stream.captions == "both" else None

    def hard_negatives(stream: ImageRecordsConfig) -> HardNegatives | None:
        if stream.hard_negatives is None:
            return None
        shape = stream.batch_size, stream.hard_negatives.count
        text = parts.text(math.prod(shape), data.text.max_tokens, vocabulary)
        return HardNegatives(text, torch.ones(shape, dtype=torch.bool))

    def images(stream: ImageRecordsConfig) -> ImageTextBatch:
        count = stream.batch_size
        pixels, valid = parts.images(count, vision.config), parts.all_valid(count)
        return ImageTextBatch(pixels, masked(stream), valid, long(stream), hard_negatives(stream))

    def videos(stream: StreamConfig) -> VideoTextBatch:
        count = stream.batch_size
        return VideoTextBatch(parts.images_or_videos(count, vision.config), masked(stream), parts.all_valid(count))

    builders: dict[str, Callable[[Any], Any]] = {
        "images": images,
        "videos": videos,
        "regions": lambda stream: replace(
            _regions(stream, vision, masked(stream)), long=long(stream), hard_negatives=hard_negatives(stream)
        ),
        "texts": lambda stream: TextBatch(masked(stream), parts.all_valid(stream.batch_size)),
        "translations": translations,
    }
    absent = dict.fromkeys(builders)
    return PretrainBatch(**{**absent, **{name: builders[name](stream) for name, stream in data.streams().items()}})


def _regions(stream: RegionStreamConfig, vision: VisionEncoder, texts: MaskedText) -> RegionBatch:
    """Returns regions that attend to all patches and have centred boxes. One image has the maximum number of regions."""
    count = len(texts.ids)
    counts = _regions_of_images(count, stream.max_images, stream.max_regions)
    return RegionBatch(
        pixels=parts.images(len(counts), vision.config),
        image_index=torch.arange(len(counts)).repeat_interleave(torch.tensor(counts), output_size=count),
        patch_mask=torch.ones(count, vision.vision_backbone.max_patches, dtype=torch.bool),
        boxes_cxcywh=torch.full((count, 4), 0.5),
        is_image=torch.zeros(count, dtype=torch.bool),
        several_boxes=torch.zeros(count, dtype=torch.bool),
        text=texts,
        valid=parts.all_valid(count),
    )


def _regions_of_images(regions: int, images: int, max_regions: int) -> list[int]:
    """Returns the number of regions of each image. The first image has ``max_regions``, or fewer if the other images would
    otherwise have no region; the remaining regions are divided equally among the other images."""
    images = min(images, regions)
    first = min(max(max_regions, -(-regions // images)), regions - images + 1)
    others = images - 1
    share, rest = divmod(regions - first, others) if others else (0, 0)
    return [first, *(share + (index < rest) for index in range(others))]


def _shared(config: Any, model: XVLM) -> dict[str, Any]:
    """Returns the fields that all fine-tuning batches have: an image or a video, and a text, for each example."""
    count, limits = config.data.batch_size, config.data.text
    return {
        "pixels": parts.images_or_videos(count, config.model.vision),
        "text": parts.text(count, limits.max_tokens, len(model.text.word_embeddings)),
        "valid": parts.all_valid(count),
    }


def _retrieval(config: RetrievalConfig, model: RetrievalModel) -> RetrievalBatch:
    return RetrievalBatch(**_shared(config, model), group=torch.arange(config.data.batch_size))


def _nlvr(config: NLVRConfig, model: NLVRModel) -> StatementBatch:
    count = config.data.batch_size
    images = parts.images(config.model.images * count, config.model.vision)
    fields = {**_shared(config, model), "pixels": images}
    return StatementBatch(**fields, label=torch.zeros(count, dtype=torch.int64))


def _grounding(config: GroundingConfig, model: XVLM) -> GroundingBatch:
    count = config.data.batch_size
    boxes, present = torch.full((count, 1, 4), 0.5), torch.ones(count, 1, dtype=torch.bool)
    return GroundingBatch(**_shared(config, model), boxes_cxcywh=boxes, present=present)


def _questions(config: VQAConfig | VideoQAConfig, model: XVLM, answers: int) -> dict[str, Any]:
    """Returns the fields that question-answering batches have. Each example has the maximum number of questions, with ``answers``
    answers each."""
    examples, questions_each = config.data.batch_size, config.data.questions_per_example
    count = examples * questions_each
    return {
        **_shared(config, model),
        "text": parts.text(count, config.data.text.max_tokens, len(model.text.word_embeddings)),
        "valid": parts.all_valid(count),
        "question_of_answer": torch.arange(count * answers) // answers,
        "weights": torch.full((count * answers,), 1 / answers),
        "image_of_question": torch.arange(count) // questions_each if questions_each > 1 else None,
    }


def _vqa(config: VQAConfig, model: VQAModel) -> QuestionBatch:
    """Returns a batch with ten answers per question, the maximum in VQA v2. Each answer has eight tokens, the maximum for answers
    of five words."""
    fields = _questions(config, model, answers=10)
    tokens = min(config.data.max_answer_tokens, 8)
    answers = parts.text(len(fields["weights"]), tokens, len(model.text.word_embeddings))
    return QuestionBatch(**fields, answers=answers)


def _video_qa(config: VideoQAConfig, model: VideoQAModel) -> ClassifiedBatch:
    fields = _questions(config, model, answers=1)
    return ClassifiedBatch(**fields, labels=torch.zeros(len(fields["weights"]), dtype=torch.int64))


def _captioning(config: CaptioningConfig, model: XVLM) -> CaptioningBatch:
    """Returns captions with the maximum number of predicted tokens."""
    if config.train.objective == "self_critical":
        raise UserError(
            "train.objective = self_critical: cannot be planned, since the length of sampled captions is "
            "unknown in advance",
            remedy="plan train.objective=likelihood",
        )
    count, limits = config.data.batch_size, config.data.text
    words = len(model.text.word_embeddings)
    captions = parts.left_to_right_text(count, limits.max_tokens, limits.max_masks, words)
    fields = {**_shared(config, model), "text": captions}
    return CaptioningBatch(**fields, references=((),) * count)


def _pretrain(config: PretrainConfig, model: PretrainModel) -> PretrainBatch:
    return pretrain_batch(config.data, model.vision, len(model.text.word_embeddings))


def _sizes_of_streams(config: PretrainConfig) -> dict[str, int]:
    sizes = {f"data.{name}.batch_size": stream.batch_size for name, stream in config.data.streams().items()}
    regions = config.data.regions
    return sizes | ({} if regions is None else {"data.regions.max_images": regions.max_images})


def _one_size(config: Any) -> dict[str, int]:
    return {"data.batch_size": config.data.batch_size}


class Synthetic(NamedTuple):
    """The functions that are needed to plan a task.

    Attributes:
        sizes: function that gets the config, and returns the config keys that set sizes, with their values.
        batch: function that gets the config and the model, and returns a micro-batch.
    """

    sizes: Callable[[Any], dict[str, int]]
    batch: Callable[[Any, Any], Batch]


SYNTHETIC = {
    "pretrain": Synthetic(_sizes_of_streams, _pretrain),
    "retrieval": Synthetic(_one_size, _retrieval),
    "nlvr": Synthetic(_one_size, _nlvr),
    "grounding": Synthetic(_one_size, _grounding),
    "vqa": Synthetic(_one_size, _vqa),
    "video_qa": Synthetic(_one_size, _video_qa),
    "captioning": Synthetic(_one_size, _captioning),
}
"""The entry for each task, by name."""


def _entry(config: Any) -> Synthetic:
    name = getattr(config, "task", None)
    if name not in SYNTHETIC:
        raise UserError(
            f"task = {name}: cannot be planned: tools/plan only knows the tasks in this repository",
            remedy="try train.steps=5 instead",
        )
    return SYNTHETIC[name]
