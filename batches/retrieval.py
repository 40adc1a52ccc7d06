"""Batches for retrieval."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from batches.base import Batch
from batches.images import Pixels
from batches.texts import Text


@dataclass(frozen=True)
class RetrievalBatch(Batch):
    """Image-text or video-text pairs for retrieval.

    Attributes:
        pixels: (N, 3, H, W) uint8 for images, (N, F, 3, H, W) for videos.
        text: N captions.
        group: (N,) int64, equal if and only if two captions belong to the same image. Such captions match each other's image.
        valid: (N,) bool, True for examples that enter the loss.
    """

    pixels: Pixels
    text: Text
    group: Tensor
    valid: Tensor
