"""Heads on the fusion encoder's states, which predict boxes (eq. 4), masked words (eq. 3) or classes."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from batches.base import IGNORE
from batches.texts import MaskedText
from models.core.blocks import QueryPositions
from models.core.losses import at_least_float32
from models.core.packing import Packing


class MLPHead(nn.Sequential):
    """Linear, LayerNorm, GELU, Linear: states (N, width) -> (N, outputs). The hidden layer has twice the width."""

    def __init__(self, width: int, outputs: int):
        super().__init__(nn.Linear(width, 2 * width), nn.LayerNorm(2 * width), nn.GELU(), nn.Linear(2 * width, outputs))


class BoxHead(MLPHead):
    """Predicts the box of a text from its fused [CLS] state (eq. 4)."""

    def __init__(self, width: int):
        super().__init__(width, 4)

    def forward(self, cls: Tensor) -> Tensor:
        """Predicts boxes (N, 4) from states (N, D), as (cx, cy, w, h) in 0..1 and in float32 or higher precision."""
        return at_least_float32(super().forward(cls)).sigmoid()


class WordHead(nn.Module):
    """BERT's head for masked words (eq. 3).

    Its output table is the word embedding table, which is passed to each call. With ``own_table``, the head has a separate table
    (as in the authors' code for XLM-R).
    """

    def __init__(self, width: int, vocab_size: int, eps: float = 1e-12, *, own_table: bool = False):
        super().__init__()
        self.transform = nn.Sequential(
            OrderedDict(dense=nn.Linear(width, width), gelu=nn.GELU(), LayerNorm=nn.LayerNorm(width, eps=eps))
        )
        self.bias = nn.Parameter(torch.zeros(vocab_size))
        self.decoder = nn.Linear(width, vocab_size, bias=False) if own_table else None

    def forward(self, states: Tensor, word_embeddings: Tensor) -> Tensor:
        """Logits (..., V) of ``states`` (..., D). A head with ``own_table`` ignores ``word_embeddings`` (V, D)."""
        table = word_embeddings if self.decoder is None else self.decoder.weight
        return F.linear(self.transform(states), table, self.bias)


def masked_positions(text: MaskedText) -> tuple[QueryPositions, Tensor]:
    """Packs the positions and labels of the masked tokens in a batch of texts.

    Returns:
        The positions of the masked tokens, at which the fusion encoder computes states for the word head; and ``labels`` (Q,)
        int64, their original token ids, with :data:`~batches.base.IGNORE` for spare tokens.
    """
    packing = Packing.of(text.labels.ne(IGNORE).sum(dim=1), text.labels.shape[1], text.masked_count)
    labels = packing.pack(text.labels).masked_fill(packing.text_index >= packing.count, IGNORE)
    return QueryPositions(text.positions, packing), labels
