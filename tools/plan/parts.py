"""Builds the parts of synthetic batches: distinct texts of maximum length, and black images."""

from __future__ import annotations

import torch
from torch import Tensor

from batches.captioning import LeftToRightText
from batches.images import NativeImages, Pixels, stack_views
from batches.texts import MaskedText, Text
from models.config import VisionConfig
from utils.image_size import sides_for

FIRST_WORD = 3
"""Smallest token id that is neither padding nor [CLS] in any model family."""


def images(count: int, vision: VisionConfig) -> Pixels:
    """Returns N black images, (N, 3, S, S) uint8."""
    image = torch.zeros(3, *sides_for(vision.image_size, 1, 1), dtype=torch.uint8)
    return stack_views([image] * count, vision.image_size)


def images_or_videos(count: int, vision: VisionConfig) -> Pixels:
    """Returns N black images, or for a video model, N black videos, (N, F, 3, S, S) uint8."""
    still = images(count, vision)
    if vision.video is None or isinstance(still, NativeImages):
        return still
    return still.unsqueeze(1).repeat(1, vision.video.frames, 1, 1, 1)


def token_ids(count: int, tokens: int, vocabulary: int) -> Tensor:
    """Returns token ids (N, L) int64 that cycle through the vocabulary."""
    return torch.arange(count * tokens).view(count, tokens) % max(1, vocabulary - FIRST_WORD) + FIRST_WORD


def text(count: int, tokens: int, vocabulary: int) -> Text:
    """Returns N texts of ``tokens`` tokens, without padding."""
    return Text(token_ids(count, tokens, vocabulary), torch.ones(count, tokens, dtype=torch.bool))


def masked_text(count: int, tokens: int, masks: int, vocabulary: int) -> MaskedText:
    """Returns N texts with ``masks`` masked tokens, [CLS] excepted."""
    plain, masks = text(count, tokens, vocabulary), min(masks, tokens - 1)
    return MaskedText(
        ids=plain.ids,
        mask=plain.mask,
        masked_ids=plain.ids,
        positions=torch.arange(1, masks + 1).repeat(count, 1),
        labels=token_ids(count, masks, vocabulary),
        text_id=torch.arange(count),
    )


def left_to_right_text(count: int, tokens: int, targets: int, vocabulary: int) -> LeftToRightText:
    """Returns N texts whose last ``targets`` tokens are to be predicted, each from a [MASK] before it."""
    targets = min(targets, tokens - 1)
    # Use plain numbers, because fake tensors have no contents to build a text from.
    words = [FIRST_WORD + position % max(1, vocabulary - FIRST_WORD) for position in range(tokens)]
    indices = list(range(tokens - targets, tokens))
    return LeftToRightText.of([words] * count, [indices] * count, mask_id=FIRST_WORD, pad_id=0)


def all_valid(count: int) -> Tensor:
    """Returns a mask, (N,) bool, that marks all N examples as valid."""
    return torch.ones(count, dtype=torch.bool)
