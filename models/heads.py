"""Heads on the states of the encoders and of the fusion."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.losses import at_least_float32


def mlp_head(width: int, outputs: int) -> nn.Sequential:
    """Linear, LayerNorm, GELU, Linear with a hidden layer of twice the width: the matching and box heads (eqs. 2 and 4)."""
    return nn.Sequential(nn.Linear(width, 2 * width), nn.LayerNorm(2 * width), nn.GELU(), nn.Linear(2 * width, outputs))


def predict_box(head: nn.Module, cls: Tensor) -> Tensor:
    """Eq. 4: a box from each fused [CLS] state (N, D), as centre and size in 0..1: (N, 4), at least float32."""
    return at_least_float32(head(cls)).sigmoid()


class WordHead(nn.Module):
    """BERT's masked-word head. The output table is the word embedding, handed in at each call, or with ``own_table`` one of
    the head's own, as released for XLM-R."""

    def __init__(self, width: int, vocab_size: int, eps: float = 1e-12, *, own_table: bool = False):
        super().__init__()
        self.transform = WordTransform(width, eps)
        self.bias = nn.Parameter(torch.zeros(vocab_size))
        self.decoder = nn.Linear(width, vocab_size, bias=False) if own_table else None

    def forward(self, states: Tensor, word_embeddings: Tensor) -> Tensor:
        """``states`` (..., D), ``word_embeddings`` (V, D), read where there is no own table -> logits (..., V)."""
        table = word_embeddings if self.decoder is None else self.decoder.weight
        return F.linear(self.transform(states), table, self.bias)


class WordTransform(nn.Module):
    """Linear, GELU, LayerNorm before the output table."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.dense = nn.Linear(width, width)
        self.LayerNorm = nn.LayerNorm(width, eps=eps)

    def forward(self, states: Tensor) -> Tensor:
        return self.LayerNorm(F.gelu(self.dense(states)))
