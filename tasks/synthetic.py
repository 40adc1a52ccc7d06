"""Parts of batches made of nothing: as large as a real micro-batch can be, for planning and for tests.

Texts have their greatest length and differ from each other; every row counts.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from dataset.pretrain import DataConfig, RegionStreamConfig
from dataset.text import TextDataConfig
from models.vision import VisionConfig, VisionEncoder
from utils.batch import (
    ImageTextBatch,
    LeftToRightText,
    MaskedText,
    PretrainBatch,
    RegionBatch,
    Text,
    TextBatch,
    TextPairBatch,
    VideoTextBatch,
)

FIRST_WORD = 3
"""The first id that is neither padding nor [CLS] in any family."""


def pictures(rows: int, vision: VisionConfig) -> Tensor:
    """Black ones, (N, 3, S, S) uint8."""
    return torch.zeros(rows, 3, vision.image_size, vision.image_size, dtype=torch.uint8)


def views(rows: int, vision: VisionConfig) -> Tensor:
    """Pictures, or where the model is one of videos, videos (N, F, 3, S, S)."""
    still = pictures(rows, vision)
    return still if vision.video is None else still.unsqueeze(1).repeat(1, vision.video.frames, 1, 1, 1)


def token_ids(rows: int, tokens: int, vocabulary: int) -> Tensor:
    """(N, L) int64: the words one after the other, over and over."""
    return torch.arange(rows * tokens).view(rows, tokens) % max(1, vocabulary - FIRST_WORD) + FIRST_WORD


def text(rows: int, tokens: int, vocabulary: int) -> Text:
    return Text(token_ids(rows, tokens, vocabulary), torch.ones(rows, tokens, dtype=torch.bool))


def masked_text(rows: int, tokens: int, masks: int, vocabulary: int) -> MaskedText:
    """With as many masked words as a text may have; [CLS] is none."""
    plain, masks = text(rows, tokens, vocabulary), min(masks, tokens - 1)
    positions = torch.arange(1, masks + 1).repeat(rows, 1)
    return MaskedText(
        ids=plain.ids,
        mask=plain.mask,
        masked_ids=plain.ids,
        positions=positions,
        labels=token_ids(rows, masks, vocabulary),
        key=torch.arange(rows),
    )


def left_to_right_text(rows: int, tokens: int, said: int, vocabulary: int) -> LeftToRightText:
    """Texts whose last ``said`` tokens have to be said, each with its [MASK] before it."""
    said = min(said, tokens - 1)
    # As plain numbers, so that it can be made where tensors have no contents.
    words = [FIRST_WORD + place % max(1, vocabulary - FIRST_WORD) for place in range(tokens)]
    places = list(range(tokens - said, tokens))
    return LeftToRightText.of([words] * rows, [places] * rows, mask_id=FIRST_WORD, pad_id=0)


def deal(rows: int, images: int, most: int) -> list[int]:
    """How many of ``rows`` each of ``images`` gets: one has ``most``, as far as the others keep one each; the rest is even."""
    images = min(images, rows)
    first = min(max(most, -(-rows // images)), rows - images + 1)
    others = images - 1
    share, left = divmod(rows - first, others) if others else (0, 0)
    return [first, *(share + (place < left) for place in range(others))]


def all_count(rows: int) -> Tensor:
    return torch.ones(rows, dtype=torch.bool)


def text_limits(data: DataConfig, stream: str) -> TextDataConfig:
    """Of the texts of a stream of pre-training; translations may have their own."""
    own = data.pairs.text if stream == "pairs" and data.pairs is not None else None
    return own or data.text


def synthetic_pretrain_batch(data: DataConfig, vision: VisionEncoder, vocabulary: int) -> PretrainBatch:
    """A micro-batch of every configured stream."""

    def masked(rows: int, limits: TextDataConfig = data.text) -> MaskedText:
        return masked_text(rows, limits.max_tokens, limits.max_masks, vocabulary)

    images, videos, texts, pairs = data.images, data.videos, data.texts, data.pairs
    made = PretrainBatch(images=None, regions=None, texts=None)
    if images is not None:
        rows = images.batch_size
        made = replace(made, images=ImageTextBatch(pictures(rows, vision.config), masked(rows), all_count(rows)))
    if videos is not None:
        rows = videos.batch_size
        made = replace(made, videos=VideoTextBatch(views(rows, vision.config), masked(rows), all_count(rows)))
    if data.regions is not None:
        made = replace(made, regions=_regions(data.regions, vision, masked(data.regions.batch_size)))
    if texts is not None:
        made = replace(made, texts=TextBatch(masked(texts.batch_size), all_count(texts.batch_size)))
    if pairs is not None:
        rows, limits = pairs.batch_size, text_limits(data, "pairs")
        other = text(rows, limits.max_tokens, vocabulary)
        made = replace(made, pairs=TextPairBatch(masked(rows, limits), other, all_count(rows)))
    return made


def _regions(stream: RegionStreamConfig, vision: VisionEncoder, texts: MaskedText) -> RegionBatch:
    """Boxes in the middle that see every patch; one image has as many as an image may have."""
    rows = len(texts.ids)
    counts = deal(rows, stream.max_images, stream.max_regions)
    return RegionBatch(
        pixels=pictures(len(counts), vision.config),
        image_index=torch.arange(len(counts)).repeat_interleave(torch.tensor(counts), output_size=rows),
        patch_mask=torch.ones(rows, vision.grid[0] * vision.grid[1], dtype=torch.bool),
        boxes_cxcywh=torch.full((rows, 4), 0.5),
        is_image=torch.zeros(rows, dtype=torch.bool),
        text=texts,
        valid=all_count(rows),
    )
