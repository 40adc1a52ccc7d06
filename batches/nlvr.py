"""Batches for visual reasoning about several images."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from batches.base import Batch
from batches.images import Pixels
from batches.texts import Text


@dataclass(frozen=True)
class StatementBatch(Batch):
    """Statements about several images, usually two.

    Attributes:
        pixels: (images * N, 3, H, W) uint8, all first (left) images, then all second (right) images.
        text: N statements.
        label: (N,) int64, 1 = true or entailed.
        valid: (N,) bool, True for examples that enter the loss.
    """

    pixels: Pixels
    text: Text
    label: Tensor
    valid: Tensor
