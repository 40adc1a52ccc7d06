"""Batches for grounding."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from batches.base import Batch
from batches.images import Pixels
from batches.texts import Text


@dataclass(frozen=True)
class GroundingBatch(Batch):
    """Phrases with the boxes they refer to.

    Attributes:
        pixels: (N, 3, H, W) uint8.
        text: N phrases.
        boxes_cxcywh: (N, M, 4) float32, as (cx, cy, w, h) relative to the image.
        present: (N, M) bool, False for boxes that are only padding.
        valid: (N,) bool, True for examples that enter the loss.
    """

    pixels: Pixels
    text: Text
    boxes_cxcywh: Tensor
    present: Tensor
    valid: Tensor
