"""Heads on the states of the encoders and of the fusion."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.losses import at_least_float32


def mlp_head(width: int, outputs: int) -> nn.Sequential:
    """Linear, LayerNorm, GELU, Linear; the hidden layer has twice the width. The matching and box heads (eqs. 2 and 4)."""
    return nn.Sequential(nn.Linear(width, 2 * width), nn.LayerNorm(2 * width), nn.GELU(), nn.Linear(2 * width, outputs))


def predict_box(head: nn.Module, cls: Tensor) -> Tensor:
    """Boxes (N, 4) from fused [CLS] states (N, D) (eq. 4): centre and size in 0..1, at least float32."""
    return at_least_float32(head(cls)).sigmoid()


class WordHead(nn.Module):
    """BERT's masked-word head.

    Its output table is the word embedding, an argument of each call. With ``own_table`` the head has a table (as released for
    XLM-R).
    """

    def __init__(self, width: int, vocab_size: int, eps: float = 1e-12, *, own_table: bool = False):
        super().__init__()
        self.transform = WordTransform(width, eps)
        self.bias = nn.Parameter(torch.zeros(vocab_size))
        self.decoder = nn.Linear(width, vocab_size, bias=False) if own_table else None

    def forward(self, states: Tensor, word_embeddings: Tensor) -> Tensor:
        """Logits (..., V) of ``states`` (..., D). ``word_embeddings`` (V, D) is ignored by a head with its own table."""
        table = word_embeddings if self.decoder is None else self.decoder.weight
        return F.linear(self.transform(states), table, self.bias)


class WordTransform(nn.Module):
    """Linear, GELU and LayerNorm before the output table."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.dense = nn.Linear(width, width)
        self.LayerNorm = nn.LayerNorm(width, eps=eps)

    def forward(self, states: Tensor) -> Tensor:
        return self.LayerNorm(F.gelu(self.dense(states)))
