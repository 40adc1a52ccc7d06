"""The batches of retrieval."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from batches.base import Batch
from batches.texts import Text


@dataclass(frozen=True)
class RetrievalBatch(Batch):
    """Image-text pairs of retrieval. ``pixels`` (N, 3, H, W) uint8, of videos (N, F, 3, H, W); ``group`` (N,) int64: equal
    exactly for captions of one image, which are positives of each other; ``valid`` (N,) bool: examples that count."""

    pixels: Tensor
    text: Text
    group: Tensor
    valid: Tensor
