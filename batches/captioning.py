"""Batches for captioning."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from batches.base import IGNORE, Batch, TokenIds
from batches.images import Pixels
from utils.sequences import stack_rows


@dataclass(frozen=True)
class LeftToRightText:
    """Texts for captioning, with a causal mask and with a [MASK] token at each position where the model predicts a word.

    A [MASK] is inserted before each token to predict. The [MASK] has the same position as this token, and attends to itself and
    to all earlier tokens. No other token attends to it (X²-VLM, section 4.3 of the paper, following Zeng and Nie). This way,
    words are predicted in training exactly as in generation.

    Attributes:
        ids: (N, L) int64, token ids.
        mask: (N, L, L) bool, True = attend. The first L axis indexes the tokens that attend, the second those attended to.
        positions: (N, L) int64, positions of the tokens, starting at 0.
        mask_indices: (N, W) int64, indices of the [MASK] tokens, 0 where unused.
        labels: (N, W) int64, the tokens to predict, :data:`IGNORE` where unused.
    """

    ids: Tensor
    mask: Tensor
    positions: Tensor
    mask_indices: Tensor
    labels: Tensor

    @staticmethod
    def of(texts: TokenIds, targets: TokenIds, mask_id: int, pad_id: int) -> LeftToRightText:
        """Builds the batch.

        Args:
            texts: token ids of each text.
            targets: for each text, the indices of the tokens to predict, in ascending order.
            mask_id, pad_id: ids of the [MASK] and padding tokens.
        """
        ids, positions, mask_indices, labels = [], [], [], []
        for text, indices in zip(texts, targets, strict=True):
            # Pairs (index, is_token): a [MASK] sorts before the token with the same index.
            order = sorted([*((index, 1) for index in range(len(text))), *((index, 0) for index in indices)])
            ids.append([text[index] if is_token else mask_id for index, is_token in order])
            positions.append([index for index, _ in order])
            mask_indices.append([position for position, (_, is_token) in enumerate(order) if not is_token])
            labels.append([text[index] for index in indices])
        padded, max_targets = stack_rows(ids, pad_id), max(1, *(len(indices) for indices in targets), 0)
        length = padded.shape[1]
        where = stack_rows(mask_indices, length, max_targets)
        is_mask = torch.zeros(len(texts), length + 1, dtype=torch.bool).scatter_(1, where, True)[:, :length]
        causal = torch.ones(length, length, dtype=torch.bool).tril() & ~is_mask.unsqueeze(1)
        return LeftToRightText(
            ids=padded,
            mask=causal | torch.eye(length, dtype=torch.bool),
            positions=stack_rows(positions, 0, length),
            mask_indices=where.masked_fill(where == length, 0),
            labels=stack_rows(labels, IGNORE, max_targets),
        )


@dataclass(frozen=True)
class CaptioningBatch(Batch):
    """Images with one caption each.

    Attributes:
        pixels: (N, 3, H, W) uint8.
        text: N captions.
        references: all captions of each image, unmodified.
        valid: (N,) bool, True for examples that enter the loss.
    """

    pixels: Pixels
    text: LeftToRightText
    references: tuple[tuple[str, ...], ...]
    valid: Tensor
