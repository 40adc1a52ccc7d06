"""The post-norm transformer block of BERT with an optional cross-attention (section 3.3 of the paper), and stacks of such blocks.

Parameters have the same names as in Hugging Face's BERT. States are packed, (T, D), and attention pads them
(:mod:`models.core.packing`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from models.config import BlockConfig
from models.core.keys_values import KeysValues, KVCache, SharedRows, aligned_zeros
from models.core.packing import PackedTexts, Packing, select_rows


@dataclass(frozen=True)
class QueryPositions:
    """The tokens for which the last block computes states: up to U tokens of each of N texts.

    Queries are padded to U. The texts of other losses need only [CLS], but their queries are padded to the U of the masked words
    in the same call; the results of padded queries are dropped.

    Attributes:
        positions: (N, U) int64, positions in the padded texts.
        packing: the packing of these tokens, for N texts padded to U.
    """

    positions: Tensor
    packing: Packing

    @staticmethod
    def cls(count: int, device: torch.device) -> QueryPositions:
        """The [CLS] tokens of ``count`` texts."""
        positions = torch.zeros(count, 1, dtype=torch.int64, device=device)
        return QueryPositions(positions, Packing.equal_lengths(count, 1, device))

    @staticmethod
    def concat(parts: Sequence[QueryPositions]) -> QueryPositions:
        """The query positions of the concatenated texts, padded to the text with the most query positions."""
        packing = Packing.concat([part.packing for part in parts])
        positions = [F.pad(part.positions, (0, packing.length - part.positions.shape[1])) for part in parts]
        return QueryPositions(torch.cat(positions), packing)

    def tokens_of(self, packing: Packing) -> Tensor:
        """Indices (Q,) of the query positions among the tokens of ``packing``. Spare positions, which fill up the packing, get
        arbitrary indices."""
        text = self.packing.text_index.clamp(max=packing.count - 1)
        return packing.starts.index_select(0, text) + self.packing.pack(self.positions)


class ResidualOutput(nn.Module):
    """Linear, dropout, drop path, residual, LayerNorm.

    Drop path drops whole texts. (The authors' code drops the same position of all texts in the batch.)
    """

    def __init__(self, inputs: int, config: BlockConfig):
        super().__init__()
        self.dense = nn.Linear(inputs, config.width)
        self.LayerNorm = nn.LayerNorm(config.width, eps=config.eps)
        self.dropout = nn.Dropout(config.dropout)
        self.drop_path = config.drop_path

    def forward(self, states: Tensor, residual: Tensor, packing: Packing) -> Tensor:
        """``states`` (T, inputs), ``residual`` (T, D) -> (T, D)."""
        added = self.dropout(self.dense(states))
        if self.training and self.drop_path:
            keep = 1 - self.drop_path
            kept = added.new_empty(packing.count + 1, 1).bernoulli_(keep).div_(keep)  # one extra row for spare tokens
            added = added * kept.index_select(0, packing.text_index)
        return self.LayerNorm(added + residual)


class Attention(nn.Module):
    """Self-attention or cross-attention, with its projections and its residual output.

    Args:
        config: the sizes of the block.
        cross_width: width of the states that cross-attention reads; if None, it is the width of the block.
        layer: index of the block in its stack, and so of the keys and values that cross-attention reads.
    """

    def __init__(self, config: BlockConfig, cross_width: int | None = None, layer: int = 0):
        super().__init__()
        self.layer = layer
        self.heads, self.dropout = config.heads, config.attention_dropout
        self.self = nn.ModuleDict(
            {
                "query": nn.Linear(config.width, config.width),
                "key": nn.Linear(cross_width or config.width, config.width),
                "value": nn.Linear(cross_width or config.width, config.width),
            }
        )
        self.output = ResidualOutput(config.width, config)

    def project(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (..., D) of ``states`` (..., D')."""
        return self.self["key"](states), self.self["value"](states)

    def self_attend(
        self,
        states: Tensor,
        packing: Packing,
        bias: Tensor,
        queries: QueryPositions | None = None,
        cache: KVCache | None = None,
    ) -> tuple[Tensor, Packing]:
        """Self-attention: tokens attend to the tokens of the same text.

        Args:
            states: (T, D).
            packing, bias, queries, cache: see :meth:`BlockStack.forward`.

        Returns:
            The states (Q, D) of the query tokens, and the packing of these tokens.
        """
        query_states, query_packing = states, packing
        if queries is not None:
            query_states, query_packing = select_rows(states, queries.tokens_of(packing)), queries.packing
        query = self.split_heads(query_packing.pad(self.self["query"](query_states)))
        keys, values = (self.split_heads(packing.pad(packed)) for packed in self.project(states))
        if cache is not None:
            keys, values = cache.update(self, keys, values)
        attended = query_packing.pack(self.attend(query, keys, values, bias))
        return self.output(attended, query_states, query_packing), query_packing

    def cross_attend(self, states: Tensor, packing: Packing, shared_rows: Sequence[SharedRows]) -> Tensor:
        """Cross-attention: tokens attend to keys and values that have been projected beforehand.

        A row of keys and values may serve several texts: S texts of a pass (in pre-training, S = 1), and the texts of several
        passes. Passes that share their rows (:class:`SharedRows`) take one call of attention, in which the tokens of all
        texts of a row are laid side by side, as if they were one long text::

            (passes * B * S, L, D)     the padded queries of a group of passes: B * S texts of L tokens in each pass
            (passes, B, S * L, D)      the S texts that attend to the same row are neighbours
            (B, passes * S * L, D)     the queries of all passes, by row
            (B, 1, passes * S * L, K)  the bias, if it differs between passes: which of the K states a query attends to

        In the last block, L is replaced by the U query positions, because only their states are needed.

        Args:
            states: (T, D).
            packing: packing of the N texts of these tokens, which are the texts of all passes.
            shared_rows: the rows of keys and values, in the order of the texts that attend to them.

        Returns:
            (T, D).
        """
        queries = packing.pad(self.self["query"](states))  # (N, L, D)
        found = []
        for texts, rows in zip(queries.split([rows.text_count for rows in shared_rows]), shared_rows, strict=True):
            keys, values = map(self.split_heads, rows.keys_values.layer(self.layer))
            # All passes attend to a row in one call, so that its keys and values are read only once.
            by_pass = texts.reshape(rows.pass_count, len(rows.keys_values), -1, texts.shape[2])
            by_row = by_pass.transpose(0, 1)  # (B, passes, S * L, D)
            attended = self.attend(self.split_heads(by_row.flatten(1, 2)), keys, values, rows.bias)
            found.append(attended.view(by_row.shape).transpose(0, 1).reshape(texts.shape))
        return self.output(packing.pack(torch.cat(found)), states, packing)

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
        """Scaled dot-product attention.

        Args:
            queries: (B, heads, M, d), M queries for each of B texts or, in cross-attention, for each of B rows.
            keys, values: (B, heads, K, d).
            bias: added to the scores, or a boolean mask, True = attend; broadcasts to (B, heads, M, K).

        Returns:
            (B, M, D).
        """
        dropout = self.dropout if self.training else 0.0
        if queries.device.type == "cpu" and queries.dtype == torch.bfloat16 and torch.is_grad_enabled() and not dropout:
            # The forward and backward passes of torch's kernel take more than twice as long as these products.
            scores = queries @ keys.transpose(2, 3) * queries.shape[3] ** -0.5
            if bias is not None:
                scores = scores + bias if bias.is_floating_point() else scores.masked_fill(~bias, -torch.inf)
            attended = scores.softmax(dim=3) @ values
        else:
            attended = F.scaled_dot_product_attention(queries, keys, values, attn_mask=bias, dropout_p=dropout)
        return attended.transpose(1, 2).flatten(2)

    def split_heads(self, states: Tensor) -> Tensor:
        """(N, L, D) -> (N, heads, L, d)."""
        return states.unflatten(2, (self.heads, -1)).transpose(1, 2)


class Block(nn.Module):
    """Self-attention, cross-attention and a feed-forward layer, each followed by a residual connection and a norm.

    Args:
        config: the sizes of the block.
        cross_width: width of the states that cross-attention reads; if None, the block has no cross-attention.
        layer: index of the block in its stack.
    """

    intermediate: Any  # a Sequential that also has the attribute `dense`
    """The first half of the feed-forward layer, with the exact GELU."""

    def __init__(self, config: BlockConfig, cross_width: int | None = None, layer: int = 0):
        super().__init__()
        self.attention = Attention(config)
        self.crossattention = Attention(config, cross_width, layer) if cross_width else None
        self.intermediate = nn.Sequential(
            OrderedDict(dense=nn.Linear(config.width, config.intermediate), gelu=nn.GELU())
        )
        self.output = ResidualOutput(config.intermediate, config)

    def forward(
        self,
        states: Tensor,
        packing: Packing,
        bias: Tensor,
        shared_rows: Sequence[SharedRows] = (),
        queries: QueryPositions | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """Runs the block. ``shared_rows`` are the keys and values for cross-attention; for the other
        arguments and the result, see :meth:`BlockStack.forward`."""
        states, packing = self.attention.self_attend(states, packing, bias, queries, cache)
        if self.crossattention is not None and shared_rows:
            states = self.crossattention.cross_attend(states, packing, shared_rows)
        return self.output(self.intermediate(states), states, packing)


class BlockStack(nn.Module):
    """A stack of blocks with the parameter names ``layer.N``. The stack is compiled as a single unit; gradient checkpointing
    works block by block."""

    def __init__(self, blocks: int, config: BlockConfig, cross_width: int | None = None):
        super().__init__()
        self.config = config
        self.layer = nn.ModuleList(Block(config.at_depth(index, blocks), cross_width, index) for index in range(blocks))
        self.gradient_checkpointing = False
        self.apply(partial(init_bert_weights, std=config.init_std))

    @property
    def blocks(self) -> list[Block]:
        """The blocks, from first to last."""
        return cast(list[Block], list(self.layer))

    @property
    def blocks_to_shard(self) -> list[Block]:
        """See :class:`optim.setup.EncoderBlocks`. Blocks with cross-attention are not sharded, because they can run several times
        in a step and project keys and values in separate calls."""
        return [block for block in self.blocks if block.crossattention is None]

    def forward(
        self,
        states: Tensor,
        packing: Packing,
        bias: Tensor,
        keys_values: Sequence[KeysValues] = (),
        queries: QueryPositions | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """Runs all blocks.

        Args:
            states: (T, D).
            packing: the packing of the tokens.
            bias: added to the scores of self-attention (:func:`attention_bias`); must broadcast to (N, heads, L, K). With
                ``queries``, it must be the same for all tokens of a text, because the last block has U queries instead of L.
            keys_values: for each pass, the keys and values that its texts attend to, for all layers, in the order of the texts;
                if empty, cross-attention is skipped, as for texts without an image.
            queries: the tokens for which the last block computes states; if None, all tokens. Earlier blocks compute all states,
                since the next block attends to all tokens.
            cache: keys and values of earlier tokens in self-attention. The keys and values of this call are appended to the
                cache, and K is their total number.

        Returns:
            (Q, D), the states of the query positions; Q = T if ``queries`` is None.
        """
        *earlier_blocks, last_block = self.blocks
        shared_rows = SharedRows.of(keys_values, packing.count, packing.length)
        for block in earlier_blocks:
            states = self._run(block, states, packing, bias, shared_rows, None, cache)
        if queries is not None:  # fewer queries attend to the rows in the last block, so their joined bias is smaller
            shared_rows = SharedRows.of(keys_values, packing.count, queries.packing.length)
        return self._run(last_block, states, packing, bias, shared_rows, queries, cache)

    def _run(self, block: Block, *inputs: Any) -> Tensor:
        """Runs a block, with gradient checkpointing if it is enabled."""
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return cast(Tensor, checkpoint(block, *inputs, use_reentrant=False))
        return cast(Tensor, block(*inputs))

    def project_layers(self, states: Tensor) -> tuple[tuple[Tensor, Tensor], ...]:
        """Projects ``states`` (..., D') to keys and values (..., D) for the cross-attention of each block."""
        return tuple(block.crossattention.project(states) for block in self.blocks if block.crossattention is not None)

    def project(self, states: Tensor, mask: Tensor | None = None) -> KeysValues:
        """Projects ``states`` (B, K, D') to keys and values that texts can attend to.

        ``mask`` (B, K) bool, True = attend; if None, texts attend to all states.
        """
        bias = None if mask is None else attention_bias(mask, linear_dtype(states))
        return KeysValues(self.project_layers(states), bias)

    def project_texts(self, texts: PackedTexts) -> KeysValues:
        """Projects texts to keys and values that other texts can attend to, one row per text."""
        return self.project(*texts.padded_with_mask())

    def set_gradient_checkpointing(self, enabled: bool) -> None:
        """See :class:`optim.setup.EncoderBlocks`."""
        self.gradient_checkpointing = enabled

    def compile_blocks(self, **options: Any) -> None:
        """See :class:`optim.setup.EncoderBlocks`.

        The number of tokens changes from step to step. Shapes are dynamic from the start, so that all ranks compile in the same
        step.
        """
        self.compile(dynamic=True, **options)


def attention_bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Turns a mask into the bias that ``scaled_dot_product_attention`` adds to the scores: 0 = attend, -inf = do not.

    Attention also accepts boolean masks, but would convert them again in every layer.

    Args:
        mask: (N, K) bool, or (N, L, K) with a mask per query; True = attend.
        dtype: dtype of the queries.

    Returns:
        (N, 1, 1 or L, K).
    """
    mask = mask[:, None, None, :] if mask.dim() == 2 else mask[:, None]
    return aligned_zeros(tuple(mask.shape), dtype, mask.device).masked_fill_(~mask, -torch.inf)


def linear_dtype(states: Tensor) -> torch.dtype:
    """Dtype of a linear layer's output for the input ``states``: the autocast dtype under autocast, otherwise unchanged."""
    device = states.device.type
    if device == "meta":
        return states.dtype
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else states.dtype


def init_bert_weights(module: nn.Module, std: float) -> None:
    """BERT's initialisation: normally distributed weights, zero biases, and norms with weight 1."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=std)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
    if isinstance(module, nn.LayerNorm):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)
