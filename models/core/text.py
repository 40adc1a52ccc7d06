"""The text encoder for the BERT and RoBERTa families; :mod:`models.core.hub_text` has an adapter for other encoders."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from batches.texts import Text
from models.config import (
    BlockConfig,
    TextArchitecture,
    TextConfig,
)
from models.core.blocks import BlockStack, attention_bias, init_bert_weights, linear_dtype
from models.core.keys_values import KVCache
from models.core.packing import PackedTexts, Packing, packings_of

KEPT_POSITIONS = 20
"""Number of positions that do not change when a position table is stretched, so that short texts, which are the most frequent,
keep their position embeddings."""


def stretch_positions(table: Tensor, rows: int, first: int = 0) -> Tensor:
    """Resizes a position table (M, D) to (``rows``, D).

    To make a table longer, its first 20 positions are kept, and the other positions are interpolated linearly over the remaining
    range (Long-CLIP, arXiv:2403.15378, section 3.1). A shorter table loses its last positions.

    Args:
        table: position table of a text encoder.
        rows: number of rows of the result.
        first: row of the first token. RoBERTa does not use the rows before it.
    """
    kept = min(first + KEPT_POSITIONS, len(table))
    if rows <= len(table) or kept == len(table):
        if rows > len(table):
            raise ValueError(f"a table of {len(table)} positions is too short to be stretched")
        return table[:rows]
    rest = table[kept:].float().T.unsqueeze(0)
    stretched = F.interpolate(rest, rows - kept, mode="linear", align_corners=True)[0].T
    return torch.cat([table[:kept], stretched.to(table.dtype)])


class Embeddings(nn.Module):
    """Sum of word, position and token type embeddings, with BERT's parameter names. RoBERTa's positions start at ``pad_id + 1``.

    If ``with_words`` is False, the word table is passed to each call.
    """

    def __init__(self, arch: TextArchitecture, dropout: float, *, with_words: bool = True):
        super().__init__()
        assert arch.vocab_size is not None
        self.arch = arch
        self.word_embeddings = (
            nn.Embedding(arch.vocab_size, arch.width, padding_idx=arch.pad_id) if with_words else None
        )
        padding_index = arch.pad_id if arch.family == "roberta" else None
        self.position_embeddings = nn.Embedding(arch.max_positions, arch.width, padding_idx=padding_index)
        self.token_type_embeddings = nn.Embedding(arch.token_types, arch.width)
        self.LayerNorm = nn.LayerNorm(arch.width, eps=arch.eps)
        self.dropout = nn.Dropout(dropout)

    def forward(self, ids: Tensor, positions: Tensor | None = None, words: Tensor | None = None) -> Tensor:
        """Embeddings (..., D) of ``ids``.

        Args:
            ids: (...,) int64, such as packed tokens (T,) or padded texts (N, L).
            positions: indices into the position table, of the same shape as ``ids``; if None, tokens are numbered in the order of
                ``ids``, which must be (N, L).
            words: (V, D), the word table, if the module was built without one.
        """
        if positions is None:
            positions = self.positions(ids)
        types = self.token_type_embeddings.weight[0]
        if self.word_embeddings is not None:
            embedded = self.word_embeddings(ids)
        else:
            assert words is not None
            embedded = F.embedding(ids, words, padding_idx=self.arch.pad_id)
        return self.dropout(self.LayerNorm(embedded + types + self.position_embeddings(positions)))

    def positions(self, ids: Tensor) -> Tensor:
        """Indices (N, L) into the position table for ``ids`` (N, L), in the order of the tokens."""
        if self.arch.family == "roberta":
            is_token = ids.ne(self.arch.pad_id)
            return is_token.cumsum(dim=1) * is_token + self.arch.pad_id
        return torch.arange(ids.shape[1], device=ids.device).expand_as(ids)


class TextEncoder(nn.Module):
    """BERT or RoBERTa without a pooler.

    ``width`` is the width of the states, which are projected if the architecture has a different width; if None, it is the
    architecture's width.
    """

    def __init__(self, config: TextConfig, arch: TextArchitecture, width: int | None = None):
        super().__init__()
        self.arch = arch
        self.width = width or arch.width
        self.block_config = block_config(config, arch)
        self.embeddings = Embeddings(arch, config.dropout)
        self.encoder = BlockStack(arch.layers, self.block_config)
        self.projection = nn.Linear(arch.width, self.width) if self.width != arch.width else None
        for module in (self.embeddings, self.projection):
            if module is not None:
                module.apply(partial(init_bert_weights, std=arch.init_std))

    @property
    def longest_text(self) -> int:
        """See :attr:`TextArchitecture.longest_text`."""
        return self.arch.longest_text

    @property
    def word_embeddings(self) -> Tensor:
        """The word table (V, D), shared with the word head. D is the architecture's width."""
        assert self.embeddings.word_embeddings is not None
        return self.embeddings.word_embeddings.weight

    def forward(self, texts: Sequence[Text]) -> list[PackedTexts]:
        """Encodes several batches of texts in one pass."""
        packings = packings_of(texts)
        # A single lookup for all batches, because the gradient of each lookup is a table as large as the vocabulary.
        ids = torch.cat([packing.pack(text.ids) for packing, text in zip(packings, texts, strict=True)])
        positions = torch.cat([packing.positions for packing in packings]) + self.arch.first_position
        embedded, packing = self.embeddings(ids, positions), Packing.concat(packings)
        states = self.encoder(embedded, packing, attention_bias(packing.mask, linear_dtype(embedded)))
        return PackedTexts.split(self._project(states), packings)

    def decode(self, ids: Tensor, positions: Tensor, bias: Tensor, cache: KVCache | None = None) -> Tensor:
        """Returns the states (N * L, D) of ``ids`` (N, L) at ``positions`` (N, L), which are counted from 0. For ``bias`` and
        ``cache``, see :meth:`BlockStack.forward`."""
        embedded = self.embeddings(ids, positions + self.arch.first_position).flatten(0, 1)
        return self._project(
            self.encoder(embedded, Packing.equal_lengths(len(ids), ids.shape[1], ids.device), bias, cache=cache)
        )

    def _project(self, states: Tensor) -> Tensor:
        return states if self.projection is None else self.projection(states)


def block_config(config: TextConfig, arch: TextArchitecture) -> BlockConfig:
    """Combines the block sizes of an architecture with the dropout rates of the config."""
    return BlockConfig(
        width=arch.width,
        heads=arch.heads,
        intermediate=arch.intermediate,
        eps=arch.eps,
        dropout=config.dropout,
        attention_dropout=config.attention_dropout,
        drop_path=config.drop_path,
        init_std=arch.init_std,
    )
