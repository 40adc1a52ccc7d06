"""Texts without their padding: rows of tokens, and where each stands in its text.

Linear layers, norms and feed-forward blocks treat every token alike, so they run on rows, (T, D). Attention needs texts apart:
slots, (N, L, D), of which those behind a text's end are empty. A :class:`Layout` leads from one to the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from utils.batch import IGNORE


@dataclass(frozen=True)
class Exchange:
    """The same rows in two arrangements, left (K, D) and right (M, D): each row has at most one partner on the other side.

    A row without one holds anything, and is to be read by nobody: its gradient is left out. So gradients are fetched by the
    partner's number too, where ``index_select`` alone would have to add them up.

    ``of_right`` (M,) int64 is the left partner of each right row, ``of_left`` (K,) the right partner of each left row; any number
    where there is none. ``left_alone`` (K, 1) and ``right_alone`` (M, 1) bool: where there is none.
    """

    of_right: Tensor
    of_left: Tensor
    left_alone: Tensor
    right_alone: Tensor

    @staticmethod
    def of(of_right: Tensor, of_left: Tensor) -> Exchange:
        """Partners are those that name each other."""
        left_alone, right_alone = (
            there.index_select(0, back) != torch.arange(len(back), device=back.device)
            for there, back in ((of_right, of_left), (of_left, of_right))
        )
        return Exchange(of_right, of_left, left_alone.unsqueeze(1), right_alone.unsqueeze(1))

    def to_right(self, left: Tensor) -> Tensor:
        """(K, D) -> (M, D)."""
        return cast(Tensor, _Fetch.apply(left, self.of_right, self.of_left, self.left_alone))

    def to_left(self, right: Tensor) -> Tensor:
        """(M, D) -> (K, D)."""
        return cast(Tensor, _Fetch.apply(right, self.of_left, self.of_right, self.right_alone))


class _Fetch(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, index: Tensor, back: Tensor, alone: Tensor) -> Tensor:
        ctx.save_for_backward(back, alone)
        return rows.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        back, alone = ctx.saved_tensors
        return grad.index_select(0, back).masked_fill_(alone, 0), None, None, None


@dataclass(frozen=True)
class Layout:
    """N texts of up to L tokens in T rows.

    ``shape`` (N, L); ``rows`` T; ``exchange`` between rows, left, and slots (N * L), right. None where rows are slots,
    T = N * L: then empty slots have rows too.
    """

    shape: tuple[int, int]
    rows: int
    exchange: Exchange | None = None

    @staticmethod
    def padded(count: int, length: int) -> Layout:
        """A row for every slot."""
        return Layout((count, length), count * length)

    @staticmethod
    def packed(mask: Tensor, tokens: int | None = None) -> Layout:
        """A row for every token of ``mask`` (N, L), True = token, and at least one.

        Args:
            tokens: how many there are, or a few more: rows that are too many repeat the first and are read by nobody. None:
                counted where the mask is in the host's memory; elsewhere nothing is packed, since counting would wait.
        """
        count, length = mask.shape
        if tokens is None:
            tokens = max(1, int(mask.sum())) if on_host(mask) else count * length
        if tokens >= count * length:
            return Layout.padded(count, length)
        flat = mask.flatten()
        row = flat.cumsum(0) - 1
        slot = row.new_zeros(tokens + 1)
        slot.scatter_(0, row.masked_fill(~flat, tokens), torch.arange(len(flat), device=mask.device))
        return Layout((count, length), tokens, Exchange.of(row.clamp(min=0), slot[:tokens]))

    def to_slots(self, rows: Tensor) -> Tensor:
        """(T, D) -> (N, L, D)."""
        spread = rows if self.exchange is None else self.exchange.to_right(rows)
        return spread.view(*self.shape, rows.shape[1])

    def to_rows(self, slots: Tensor) -> Tensor:
        """(N, L, D) -> (T, D)."""
        flat = slots.reshape(-1, slots.shape[2])
        return flat if self.exchange is None else self.exchange.to_left(flat)

    def labels(self, labels: Tensor, used: Tensor) -> Tensor:
        """Labels (N, L) of the slots as those of the rows (T,), where ``used`` are the tokens; of rows that are too many
        :data:`~utils.batch.IGNORE`."""
        own = self.to_rows(labels.unsqueeze(2)).squeeze(1)
        if self.exchange is None:
            return own
        return own.masked_fill(torch.arange(self.rows, device=own.device) >= used.sum(), IGNORE)

    def rows_at(self, positions: Tensor) -> Tensor:
        """The rows (N * M,) of the tokens at ``positions`` (N, M)."""
        count, length = self.shape
        slots = (positions + torch.arange(count, device=positions.device).unsqueeze(1) * length).flatten()
        return slots if self.exchange is None else self.exchange.of_right.index_select(0, slots)

    def row_of_slot(self, device: torch.device) -> Tensor:
        """(N * L,) int64; of an empty slot, some row."""
        return torch.arange(self.rows, device=device) if self.exchange is None else self.exchange.of_right

    def slot_of_row(self, device: torch.device) -> Tensor:
        """(T,) int64; of a row that is too many, some slot."""
        return torch.arange(self.rows, device=device) if self.exchange is None else self.exchange.of_left

    def text_of_row(self, device: torch.device) -> Tensor:
        """(T,) int64: which of the N texts each row is of."""
        return self.slot_of_row(device) // self.shape[1]


def text_layout(shape: Sequence[int], mask: Tensor, tokens: int | None = None) -> Layout:
    """Of texts of ``shape`` (N, L, …) with a padding mask (N, L); with a mask for each token, (N, L, K), which may be the same
    for all texts, every slot keeps its row."""
    return Layout.packed(mask, tokens) if mask.dim() == 2 else Layout.padded(shape[0], shape[1])


def on_host(tensor: Tensor) -> bool:
    """Whether looking at the numbers costs nothing: not on a GPU, which would have to be waited for, and not in a graph."""
    return tensor.device.type == "cpu" and type(tensor) is Tensor and not torch.compiler.is_compiling()


def join(parts: Sequence[Tensor]) -> Tensor:
    """``torch.cat`` without a copy of one part."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))
