"""The post-norm transformer layer of BERT, under Hugging Face's key names, with an optional cross-attention (section 3.3).

Everything but attention runs on the rows of tokens alone, one after the other and without padding (:mod:`models.layout`): a
layer takes texts of any lengths, and of several streams, in one call. The cross-attention takes keys and values that were
projected beforehand (see :mod:`models.fusion`), since an image's keys depend on the image alone, while many texts look at it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from models.layout import Layout, join
from utils.config import Config


class LayerConfig(Config):
    """Sizes of a BERT-like layer."""

    width: int
    heads: int
    intermediate: int
    eps: float = 1e-12
    dropout: float = 0.1
    attention_dropout: float = 0.1
    drop_path: float = 0.0
    init_std: float = 0.02

    @property
    def residual_dropout(self) -> float:
        """Dropout on what a block adds: none beside a drop path (as released)."""
        return 0.0 if self.drop_path else self.dropout

    def at_depth(self, index: int, layers: int) -> LayerConfig:
        """The sizes of layer ``index`` of a stack, whose drop path rises linearly from 0 to ``drop_path``."""
        share = index / (layers - 1) if layers > 1 else 0.0
        return self.model_copy(update={"drop_path": self.drop_path * share, "dropout": self.residual_dropout})


def uneven_heads(width: int, heads: int) -> str | None:
    """What is wrong with so many heads of attention, and how many would do; None: they divide the width."""
    if width % heads == 0:
        return None
    divisors = [number for number in range(1, width + 1) if width % number == 0]
    near = (max(number for number in divisors if number < heads), *(number for number in divisors if number > heads))
    return f"width {width} is not a multiple of heads {heads}; {' or '.join(map(str, near[:2]))} heads would do"


def split_heads(states: Tensor, heads: int) -> Tensor:
    """(N, L, D) -> (N, heads, L, D / heads)."""
    n, length, width = states.shape
    return states.view(n, length, heads, width // heads).transpose(1, 2)


def merge_heads(states: Tensor) -> Tensor:
    """(N, heads, L, d) -> (N, L, heads * d)."""
    n, heads, length, width = states.shape
    return states.transpose(1, 2).reshape(n, length, heads * width)


class Projections(nn.Module):
    """Query, key and value projections; keys and values may come from states of another width (``memory_width``)."""

    def __init__(self, width: int, heads: int, memory_width: int | None = None):
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(memory_width or width, width)
        self.value = nn.Linear(memory_width or width, width)

    def forward(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of ``states`` (N, L, D'), each (N, heads, L, d)."""
        return split_heads(self.key(states), self.heads), split_heads(self.value(states), self.heads)


class Owners(NamedTuple):
    """Which text each row is of: ``text`` (T,) int64, below ``texts``."""

    text: Tensor
    texts: int


class ResidualOutput(nn.Module):
    """Linear, dropout, drop path, residual, LayerNorm.

    The drop path leaves out whole texts (released: positions, the same ones in the whole batch).
    """

    def __init__(self, inputs: int, config: LayerConfig):
        super().__init__()
        self.dense = nn.Linear(inputs, config.width)
        self.LayerNorm = nn.LayerNorm(config.width, eps=config.eps)
        self.dropout = nn.Dropout(config.dropout)
        self.drop_path = config.drop_path

    def forward(self, states: Tensor, residual: Tensor, owners: Owners | None = None) -> Tensor:
        """``states`` (T, inputs), ``residual`` (T, D) -> (T, D). ``owners``: where there is a drop path, in training."""
        added = self.dropout(self.dense(states))
        if owners is not None:
            kept = added.new_empty(owners.texts, 1).bernoulli_(1 - self.drop_path).div_(1 - self.drop_path)
            added = added * kept.index_select(0, owners.text)
        return self.LayerNorm(added + residual)


Extend = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Given the keys and values of new states, each (N, heads, L, d), all that are attended to: in decoding, the kept ones too."""


@dataclass(frozen=True)
class SelfLook:
    """The self-attention of a stretch of rows: where its queries and its keys stand (the same, unless only some ask), and what
    :func:`attention_mask` made of its mask, which broadcasts to (N, heads, Lq, Lk)."""

    queries: Layout
    keys: Layout
    mask: Tensor | None


@dataclass(frozen=True)
class Asking:
    """What a layer computes: ``looks`` cover its rows in order. ``rows`` (Q,) int64: only these go on; None: all."""

    looks: tuple[SelfLook, ...]
    rows: Tensor | None = None

    def owners(self, device: torch.device) -> Owners:
        """Of the rows that go on."""
        layouts = [look.queries for look in self.looks]
        starts = itertools.accumulate([0, *(layout.shape[0] for layout in layouts[:-1])])
        texts = [layout.text_of_row(device) + start for layout, start in zip(layouts, starts, strict=True)]
        return Owners(join(texts), sum(layout.shape[0] for layout in layouts))


class Attention(nn.Module):
    """Multi-head attention with its residual and norm, on ``scaled_dot_product_attention``."""

    def __init__(self, config: LayerConfig, memory_width: int | None = None):
        super().__init__()
        self.self = Projections(config.width, config.heads, memory_width)
        self.output = ResidualOutput(config.width, config)
        self.attention_dropout = config.attention_dropout

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        """Attention proper: (N, heads, Lq, d) queries over (N, heads, Lk, d); ``mask`` broadcasts to (N, heads, Lq, Lk)."""
        dropout = self.attention_dropout if self.training else 0.0
        return F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, dropout_p=dropout)

    def forward(
        self, rows: Tensor, asking: Asking, extend: Extend | None = None, owners: Owners | None = None
    ) -> Tensor:
        """Self-attention of ``rows`` (T, D) -> (Q, D). With ``extend``, the mask's last axis is that of the extended keys."""
        project, heads = self.self, self.self.heads
        asked = rows if asking.rows is None else rows.index_select(0, asking.rows)
        queries = project.query(asked).split([look.queries.rows for look in asking.looks])
        sizes = [look.keys.rows for look in asking.looks]
        keys, values = project.key(rows).split(sizes), project.value(rows).split(sizes)
        attended = []
        for look, query, key, value in zip(asking.looks, queries, keys, values, strict=True):
            seen = tuple(split_heads(look.keys.to_slots(part), heads) for part in (key, value))
            key, value = seen if extend is None else extend(*seen)
            found = self.attend(split_heads(look.queries.to_slots(query), heads), key, value, look.mask)
            attended.append(look.queries.to_rows(merge_heads(found)))
        return self.output(join(attended), asked, owners)


class Intermediate(nn.Module):
    """The first half of the feed-forward block; GELU is the exact one."""

    def __init__(self, config: LayerConfig):
        super().__init__()
        self.dense = nn.Linear(config.width, config.intermediate)

    def forward(self, states: Tensor) -> Tensor:
        return F.gelu(self.dense(states))


CrossAttend = Callable[[Attention, Tensor], Tensor]
"""Given a layer's cross-attention and its queries (T, D), the attended values in the same layout."""


@dataclass(frozen=True)
class Cross:
    """The cross-attention of a layer's first ``rows`` rows; those behind them look at nothing."""

    rows: int
    attend: CrossAttend


class Layer(nn.Module):
    """Self-attention, cross-attention where ``memory_width`` is given, feed-forward; each with its own residual and norm."""

    def __init__(self, config: LayerConfig, memory_width: int | None = None):
        super().__init__()
        self.attention = Attention(config)
        self.crossattention = Attention(config, memory_width) if memory_width else None
        self.intermediate = Intermediate(config)
        self.output = ResidualOutput(config.intermediate, config)
        self.drop_path = config.drop_path

    def forward(self, rows: Tensor, asking: Asking, cross: Cross | None = None, extend: Extend | None = None) -> Tensor:
        """``rows`` (T, D) -> (Q, D). Without ``cross`` the cross-attention is skipped, as for texts that have no image."""
        owners = asking.owners(rows.device) if self.training and self.drop_path else None
        states = self.attention(rows, asking, extend, owners)
        if self.crossattention is not None and cross is not None:
            looking, alone = states.split([cross.rows, len(states) - cross.rows])
            attended = cross.attend(self.crossattention, self.crossattention.self.query(looking))
            seeing = None if owners is None else Owners(owners.text[: cross.rows], owners.texts)
            looking = self.crossattention.output(attended, looking, seeing)
            states = torch.cat([looking, alone]) if len(alone) else looking
        return self.output(self.intermediate(states), states, owners)


def run_layer(layer: nn.Module, recompute: bool, *given: object) -> Tensor:
    """A layer's output; with ``recompute``, what is inside it is not kept for the backward pass, which computes it anew."""
    if recompute and torch.is_grad_enabled():
        return cast(Tensor, checkpoint(layer, *given, use_reentrant=False))
    return cast(Tensor, layer(*given))


def attention_mask(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A padding mask (N, L), or a mask per query (N, L, K), as what is added to the scores in ``scaled_dot_product_attention``: 0
    and -inf, (N, 1, 1 or L, K) of the ``dtype`` of queries.

    Kernels make this of a mask of truth values anew in each layer; those of GPUs want its rows 8 numbers apart.
    """
    mask = mask[:, None, None, :] if mask.dim() == 2 else mask[:, None]
    length = mask.shape[3]
    added = torch.zeros((*mask.shape[:3], -(-length // 8) * 8), dtype=dtype, device=mask.device)[..., :length]
    return added.masked_fill_(~mask, -torch.inf)


def query_dtype(states: Tensor) -> torch.dtype:
    """Of what linear layers make of ``states``."""
    kind = states.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else states.dtype


def init_bert_weights(module: nn.Module, std: float) -> None:
    """BERT's initialisation: normal weights, zero biases, unit norms."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=std)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
    if isinstance(module, nn.LayerNorm):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)


def gather_positions(states: Tensor, positions: Tensor) -> Tensor:
    """States at ``positions`` (N, M) of ``states`` (N, L, D): (N, M, D)."""
    n, length, width = states.shape
    flat = positions + torch.arange(n, device=positions.device).unsqueeze(1) * length
    return states.reshape(n * length, width).index_select(0, flat.reshape(-1)).view(n, -1, width)
