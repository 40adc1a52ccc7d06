"""Parts of synthetic batches: texts of their greatest length that differ from each other, and black images."""

from __future__ import annotations

import torch
from torch import Tensor

from models.vision import VisionConfig
from utils.batch import LeftToRightText, MaskedText, Text

FIRST_WORD = 3
"""The first id that is neither padding nor [CLS] in any family."""


def images(count: int, vision: VisionConfig) -> Tensor:
    """Black ones, (N, 3, S, S) uint8."""
    return torch.zeros(count, 3, vision.image_size, vision.image_size, dtype=torch.uint8)


def images_or_videos(count: int, vision: VisionConfig) -> Tensor:
    """Videos (N, F, 3, S, S) where the model is one of videos."""
    still = images(count, vision)
    return still if vision.video is None else still.unsqueeze(1).repeat(1, vision.video.frames, 1, 1, 1)


def token_ids(count: int, tokens: int, vocabulary: int) -> Tensor:
    """(N, L) int64: the words in order, over and over."""
    return torch.arange(count * tokens).view(count, tokens) % max(1, vocabulary - FIRST_WORD) + FIRST_WORD


def text(count: int, tokens: int, vocabulary: int) -> Text:
    """Texts of ``tokens`` tokens."""
    return Text(token_ids(count, tokens, vocabulary), torch.ones(count, tokens, dtype=torch.bool))


def masked_text(count: int, tokens: int, masks: int, vocabulary: int) -> MaskedText:
    """Texts with ``masks`` masked words, as far as there are words beside [CLS]."""
    plain, masks = text(count, tokens, vocabulary), min(masks, tokens - 1)
    return MaskedText(
        ids=plain.ids,
        mask=plain.mask,
        masked_ids=plain.ids,
        positions=torch.arange(1, masks + 1).repeat(count, 1),
        labels=token_ids(count, masks, vocabulary),
        key=torch.arange(count),
    )


def left_to_right_text(count: int, tokens: int, predicted: int, vocabulary: int) -> LeftToRightText:
    """Texts whose last ``predicted`` tokens are predicted, each from the [MASK] before it."""
    predicted = min(predicted, tokens - 1)
    # Plain numbers, so that the text can be made under fake tensors.
    words = [FIRST_WORD + place % max(1, vocabulary - FIRST_WORD) for place in range(tokens)]
    places = list(range(tokens - predicted, tokens))
    return LeftToRightText.of([words] * count, [places] * count, mask_id=FIRST_WORD, pad_id=0)


def all_valid(count: int) -> Tensor:
    """Every example counts."""
    return torch.ones(count, dtype=torch.bool)
