"""Texts without padding.

Linear layers and norms treat every token alike, so they run on packed tokens, without padding: (T, D). Attention needs separate
texts, padded to the longest text: (N, L, D). A :class:`Packing` converts between the two layouts, and :class:`PackedTexts`
combine token states with their packing.

Reading the lengths of texts back from a GPU would force a device sync. T is therefore chosen on the host, and may be larger than
the number of tokens. The remaining positions hold spare tokens, which come after the real tokens of their batch, have arbitrary
finite values, and do not enter any result. For example, here are the padded indices of texts of 3 and 1 tokens, with L = 3::

    T = 4   0 1 2   3        packed
    T = 5   0 1 2   3 6      with a spare token, whose index N * L = 6 lies after the last text
    T = 6   0 1 2   3 4 5    dense: the packed and the padded layout are the same, and 4 and 5 are padding
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from batches.texts import Text


@dataclass(frozen=True)
class Packing:
    """Maps T packed tokens to their positions in N texts that are padded to L tokens.

    Attributes:
        lengths: (N,) int64, number of tokens of each text.
        starts: (N,) int64, index of each text's first packed token.
        length: L.
        padded_index: (T,) int64, index of each token in the padded layout, which is text * L + position; N * L for a spare token.
        dense: True if T = N * L. In this case, the packed and the padded layout are identical, and nothing has to be moved. There
            are padding tokens instead of spare tokens, and each padding token has a different padded index. A concatenation that
            is not dense may contain the padding tokens of dense parts.
    """

    lengths: Tensor
    starts: Tensor
    length: int
    padded_index: Tensor
    dense: bool = False

    @staticmethod
    def of(lengths: Tensor, length: int, token_count: int | None = None) -> Packing:
        """Packs texts consecutively.

        Args:
            lengths: (N,) int64, number of tokens of each text.
            length: L, the length to which attention pads the texts.
            token_count: T, at least the sum of ``lengths``. If None, T is the sum if the lengths are in host memory. Otherwise,
                T is the padded size N * L, which avoids a device sync.
        """
        count = len(lengths)
        if token_count is None:
            token_count = int(lengths.sum()) if on_host(lengths) else count * length
        if token_count >= count * length:
            every = torch.arange(count * length, device=lengths.device)
            return Packing(lengths, torch.arange(count, device=lengths.device) * length, length, every, dense=True)
        ends = lengths.cumsum(0)
        starts = ends - lengths
        token = torch.arange(token_count, device=lengths.device)
        text = torch.searchsorted(ends, token, right=True)
        first = F.pad(starts, (0, 1)).index_select(0, text)
        padded_index = torch.where(text < count, text * length + token - first, count * length)
        return Packing(lengths, starts, length, padded_index)

    @staticmethod
    def equal_lengths(count: int, length: int, device: torch.device) -> Packing:
        """The packing of ``count`` texts of ``length`` tokens each."""
        return Packing.of(torch.full((count,), length, device=device), length, count * length)

    @staticmethod
    def concat(parts: Sequence[Packing]) -> Packing:
        """The packing of all texts in ``parts``, which attention pads to the longest text of all parts. Each part's spare tokens
        stay directly after its real tokens."""
        if len(parts) == 1:
            return parts[0]
        length, count = max(part.length for part in parts), sum(part.count for part in parts)
        indices, starts = [], []
        texts = tokens = 0
        for part in parts:
            text, position = part.padded_index // part.length, part.padded_index % part.length
            indices.append(torch.where(text < part.count, (text + texts) * length + position, count * length))
            starts.append(part.starts + tokens)
            texts, tokens = texts + part.count, tokens + part.token_count
        lengths = torch.cat([part.lengths for part in parts])
        dense = all(part.dense and part.length == length for part in parts)
        return Packing(lengths, torch.cat(starts), length, torch.cat(indices), dense)

    @property
    def count(self) -> int:
        """N, the number of texts."""
        return len(self.lengths)

    @property
    def token_count(self) -> int:
        """T, the number of packed tokens, including spare tokens."""
        return len(self.padded_index)

    @property
    def mask(self) -> Tensor:
        """(N, L) bool, True = token, False = padding."""
        return torch.arange(self.length, device=self.lengths.device) < self.lengths.unsqueeze(1)

    @property
    def positions(self) -> Tensor:
        """(T,) int64: the position of each token in its text, from 0."""
        return self.padded_index % self.length

    @property
    def text_index(self) -> Tensor:
        """(T,) int64: the index of each token's text; N for a spare token."""
        return self.padded_index // self.length

    def pad(self, packed: Tensor) -> Tensor:
        """Converts (T, D) to (N, L, D). Positions after the end of a text have finite values and must be masked in attention."""
        width = packed.shape[1]
        if self.dense:
            return packed.view(self.count, self.length, width)
        return _spread(packed, self.padded_index, self.count * self.length).view(self.count, self.length, width)

    def pack(self, padded: Tensor) -> Tensor:
        """Converts (N, L, ...) to (T, ...)."""
        flat = padded.flatten(0, 1)
        return flat if self.dense else cast(Tensor, _Pack.apply(flat, self.padded_index))


def _spread(packed: Tensor, padded_index: Tensor, count: int) -> Tensor:
    """Converts (T, ...) to (count, ...), with each token at its padded index and zeros elsewhere. Spare tokens are dropped."""
    return packed.new_zeros(count + 1, *packed.shape[1:]).index_copy_(0, padded_index, packed)[:-1]


class _Pack(torch.autograd.Function):
    """``padded.index_select(0, padded_index)`` with a faster, deterministic gradient.

    Apart from spare tokens, no two tokens have the same padded index, so each gradient is simply written to its position. The
    backward pass of ``index_select`` adds gradients instead, which is slow and, on a GPU, happens in no fixed order.
    """

    @staticmethod
    def forward(ctx: Any, padded: Tensor, padded_index: Tensor) -> Tensor:
        ctx.save_for_backward(padded_index)
        ctx.count = len(padded)
        return padded.index_select(0, padded_index.clamp(max=len(padded) - 1))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (padded_index,) = ctx.saved_tensors
        return _spread(grad, padded_index, ctx.count), None


def select_rows(table: Tensor, rows: Tensor) -> Tensor:
    """Copies the rows of ``table`` (M, ...) with the indices ``rows`` (any shape) int64. A row may be copied several times; its
    gradients are then added in a fixed order, at the precision of the table or higher."""
    selected = cast(Tensor, _SelectRows.apply(table, rows.flatten()))
    return selected.view(*rows.shape, *table.shape[1:])


class _SelectRows(torch.autograd.Function):
    """``table.index_select(0, rows)`` with a deterministic gradient.

    On a GPU, the backward pass of ``index_select`` adds gradients one after the other, in no fixed order, and rounds each sum to
    the precision of the table. ``index_put_`` sorts the rows first.
    """

    @staticmethod
    def forward(ctx: Any, table: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.shape = table.shape
        return table.index_select(0, rows)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (rows,) = ctx.saved_tensors
        total = grad.new_zeros(ctx.shape)
        if grad.device.type == "cpu":  # here it is index_put_ that adds in no fixed order
            return total.index_add_(0, rows, grad), None
        return total.index_put_((rows,), grad, accumulate=True), None


@dataclass(frozen=True)
class PackedTexts:
    """The token states (T, D) of N texts, and their packing."""

    states: Tensor
    packing: Packing

    @property
    def cls(self) -> Tensor:
        """The states of the first tokens, [CLS]: (N, D)."""
        return select_rows(self.states, self.packing.starts)

    def padded(self) -> Tensor:
        """The token states in the padded layout, (N, L, D)."""
        return self.packing.pad(self.states)

    def padded_with_mask(self) -> tuple[Tensor, Tensor]:
        """The token states in the padded layout, (N, L, D), and their mask (N, L), True = token."""
        return self.padded(), self.packing.mask

    def select(self, index: Tensor, token_count: int | None = None, length: int | None = None) -> PackedTexts:
        """The texts with the indices ``index`` (M,), in that order.

        ``token_count`` and ``length`` are passed to :meth:`Packing.of`. If ``length`` is None, texts are padded to the longest
        selected text or, if the lengths are not in host memory, to L.
        """
        lengths = self.packing.lengths.index_select(0, index)
        if length is None:
            length = int(lengths.max()) if on_host(lengths) else self.packing.length
        packing = Packing.of(lengths, length, token_count)
        # Spare tokens, and padding in a dense packing, get arbitrary states.
        text, position = packing.text_index.clamp(max=len(index) - 1), packing.positions
        start = self.packing.starts.index_select(0, index).index_select(0, text)
        source = (start + position).clamp(max=len(self.states) - 1)
        return PackedTexts(select_rows(self.states, source), packing)

    @staticmethod
    def concat(parts: Sequence[PackedTexts]) -> PackedTexts:
        """The texts of all ``parts``."""
        return PackedTexts(torch.cat([part.states for part in parts]), Packing.concat([part.packing for part in parts]))

    @staticmethod
    def split(states: Tensor, packings: Sequence[Packing]) -> list[PackedTexts]:
        """Undoes a concatenation: splits the concatenated ``states`` (T, D) into the texts of each packing."""
        parts = states.split([packing.token_count for packing in packings])
        return list(itertools.starmap(PackedTexts, zip(parts, packings, strict=True)))


def packings_of(texts: Sequence[Text]) -> list[Packing]:
    """The packing of each batch of texts. Texts and their masked copies have the same mask and share one packing."""
    by_mask: dict[int, Packing] = {}
    for text in texts:
        if id(text.mask) not in by_mask:
            by_mask[id(text.mask)] = Packing.of(text.mask.sum(dim=1), text.mask.shape[1], text.token_count)
    return [by_mask[id(text.mask)] for text in texts]


def on_host(tensor: Tensor) -> bool:
    """True if the host can read the values without waiting, which excludes tensors on a GPU, fake tensors, and all tensors during
    compilation."""
    return tensor.device.type == "cpu" and type(tensor) is Tensor and not torch.compiler.is_compiling()
