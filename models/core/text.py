"""The text encoder for the BERT and RoBERTa families; :mod:`models.core.hub_text` has an adapter for other encoders."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from batches.texts import Text
from models.core.blocks import (
    MAX_BLOCKS,
    MAX_HEADS,
    MAX_ROWS,
    MAX_WIDTH,
    BlockConfig,
    BlockStack,
    attention_bias,
    heads_error,
    init_bert_weights,
    linear_dtype,
)
from models.core.keys_values import KVCache
from models.core.packing import PackedTexts, Packing, packings_of
from utils.config import Config
from utils.inputs import InputModel


class TextArchitecture(Config):
    """Sizes of a BERT or RoBERTa encoder."""

    family: Literal["bert", "roberta"] = Field(
        "bert", description="family of the encoder, which determines how positions are counted and texts are padded"
    )
    vocab_size: int | None = Field(
        None,
        ge=1,
        le=MAX_ROWS,
        description="number of rows in the word table; null: size of the tokenizer's vocabulary",
    )
    width: int = Field(768, ge=1, le=MAX_WIDTH, description="width of the states")
    layers: int = Field(12, ge=1, le=MAX_BLOCKS, description="number of blocks")
    heads: int = Field(12, ge=1, le=MAX_HEADS, description="number of attention heads, a divisor of the width")
    intermediate: int = Field(
        3072, ge=1, le=MAX_WIDTH, description="width of the hidden layer of the feed-forward network"
    )
    max_positions: int = Field(
        512,
        ge=1,
        le=MAX_ROWS,
        description="number of rows in the position table; RoBERTa does not use the first two",
    )
    token_types: int = Field(
        2, ge=1, description="number of rows in the token type table, of which only the first is used"
    )
    eps: float = Field(
        1e-12, gt=0, description="epsilon of all LayerNorms, including those of the fusion encoder and the MLM head"
    )
    pad_id: int = Field(0, ge=0, description="token id of the padding token")
    init_std: float = Field(
        0.02,
        gt=0,
        description="standard deviation of random initial weights, also in the fusion encoder; 0.02 suits a width of "
        "768, and narrow models need a larger value",
    )

    @property
    def first_position(self) -> int:
        """Position of the first token. RoBERTa's positions start after ``pad_id``."""
        return self.pad_id + 1 if self.family == "roberta" else 0

    @property
    def longest_text(self) -> int:
        """Maximum number of tokens of a text: the number of positions."""
        return self.max_positions - self.first_position

    @model_validator(mode="after")
    def _heads_divide_width(self) -> TextArchitecture:
        error = heads_error(self.width, self.heads)
        if error:
            raise ValueError(error)
        return self


class TextConfig(Config):
    """The text encoder, the maximum length of texts, and dropout."""

    encoder: InputModel = Field(
        "bert-base-uncased",
        description="Hugging Face name or folder from which the tokenizer is loaded and, if `arch` is null, the "
        "sizes of the text encoder are read",
    )
    arch: TextArchitecture | None = Field(None, description="sizes of the text encoder; null: as in `encoder`")
    max_positions: int | None = Field(
        None,
        ge=1,
        le=MAX_ROWS,
        description="maximum number of tokens in a text; if it differs from the encoder's, the position table is "
        "interpolated when weights are loaded; null: as in the encoder",
    )
    dropout: float = Field(
        0.1, ge=0, lt=1, description="dropout of embeddings and residuals, also in the fusion encoder"
    )
    attention_dropout: float = Field(
        0.1, ge=0, lt=1, description="dropout of attention weights, also in the fusion encoder"
    )
    drop_path: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="drop path rate of the last block, rising linearly from 0 in the first block; replaces "
        "residual dropout",
    )

    @property
    def knows_vocabulary(self) -> bool:
        """True if the vocabulary size is known without a tokenizer."""
        return self.arch is None or self.arch.vocab_size is not None


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
        embedded = self.embeddings(ids, positions)
        states = self._encode(PackedTexts(embedded, Packing.concat(packings)))
        return PackedTexts.split(self._project(states), packings)

    def _encode(self, embedded: PackedTexts) -> Tensor:
        """The states (T, D) after all blocks."""
        packing = embedded.packing
        cut = self.encoder.length_cut([packing])
        if cut is not None:
            parts = [(index, embedded.select(index)) for index in packing.short_and_long(cut)]
            encoded = [(index, PackedTexts(self._encode(part), part.packing)) for index, part in parts]
            return PackedTexts.join(encoded, packing).states
        return self.encoder(embedded.states, packing, attention_bias(packing.mask, linear_dtype(embedded.states)))

    def decode(self, ids: Tensor, positions: Tensor, bias: Tensor, cache: KVCache | None = None) -> Tensor:
        """Returns the states (N * L, D) of ``ids`` (N, L) at ``positions`` (N, L), which are counted from 0. For ``bias`` and
        ``cache``, see :meth:`BlockStack.forward`."""
        embedded = self.embeddings(ids, positions + self.arch.first_position).flatten(0, 1)
        return self._project(
            self.encoder(embedded, Packing.padded(len(ids), ids.shape[1], ids.device), bias, cache=cache)
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
