"""Texts without padding.

Linear layers, norms and feed-forward blocks treat every token alike, so they run on the tokens alone, packed one after the
other: (T, D). Attention needs the texts apart, padded to the longest of them: (N, L, D). A :class:`Packing` leads from one to
the other, :class:`PackedTexts` are token states with their packing.

The host must not ask a GPU for a text's length: that would wait for the device. So T is a number that the host knows, and may be
larger than the number of tokens: spare tokens come after those of their batch, hold any finite numbers, and are never read. For
example,
texts of 3 and 1 tokens, padded to L = 3, are packed as 4 tokens, whose padded index is 0, 1, 2 and 3; with T = 5 a spare one
follows, whose padded index is 6.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from utils.batch import Text


@dataclass(frozen=True)
class Packing:
    """Where each of T packed tokens stands in N texts that are padded to L.

    ``lengths`` (N,) int64, tokens of each text; ``starts`` (N,) int64, the number of its first packed token; ``length`` L;
    ``padded_index`` (T,) int64, text * L + position of each token, N * L for a spare one. ``dense``: T = N * L, packed and
    padded tokens are the same in the same order, and nothing has to be moved; padding then takes the place of spare tokens, each
    with its own padded index.
    """

    lengths: Tensor
    starts: Tensor
    length: int
    padded_index: Tensor
    dense: bool = False

    @staticmethod
    def of(lengths: Tensor, length: int, tokens: int | None = None) -> Packing:
        """Texts of these ``lengths`` (N,), one after the other.

        Args:
            lengths: (N,) int64.
            length: L, what the texts are padded to for attention.
            tokens: T, at least the sum of ``lengths``. None: counted where the lengths are in the host's memory; elsewhere the
                padded size, so that nobody has to wait.
        """
        count = len(lengths)
        if tokens is None:
            tokens = int(lengths.sum()) if on_host(lengths) else count * length
        if tokens >= count * length:
            every = torch.arange(count * length, device=lengths.device)
            return Packing(lengths, torch.arange(count, device=lengths.device) * length, length, every, dense=True)
        ends = lengths.cumsum(0)
        starts = ends - lengths
        token = torch.arange(tokens, device=lengths.device)
        text = torch.searchsorted(ends, token, right=True)
        first = F.pad(starts, (0, 1)).index_select(0, text)
        padded_index = torch.where(text < count, text * length + token - first, count * length)
        return Packing(lengths, starts, length, padded_index)

    @staticmethod
    def padded(count: int, length: int, device: torch.device) -> Packing:
        """``count`` texts of ``length`` tokens each."""
        return Packing.of(torch.full((count,), length, device=device), length, count * length)

    @staticmethod
    def concat(parts: Sequence[Packing]) -> Packing:
        """All texts of ``parts``, padded to the longest of them; each part keeps its spare tokens behind its own."""
        if len(parts) == 1:
            return parts[0]
        length, count = max(part.length for part in parts), sum(part.count for part in parts)
        indices, starts = [], []
        texts = tokens = 0
        for part in parts:
            text, position = part.padded_index // part.length, part.padded_index % part.length
            indices.append(torch.where(text < part.count, (text + texts) * length + position, count * length))
            starts.append(part.starts + tokens)
            texts, tokens = texts + part.count, tokens + part.tokens
        lengths = torch.cat([part.lengths for part in parts])
        dense = all(part.dense and part.length == length for part in parts)
        return Packing(lengths, torch.cat(starts), length, torch.cat(indices), dense)

    @property
    def count(self) -> int:
        """N, the number of texts."""
        return len(self.lengths)

    @property
    def tokens(self) -> int:
        """T, the number of packed tokens, spare ones included."""
        return len(self.padded_index)

    @property
    def mask(self) -> Tensor:
        """(N, L) bool, True = token, False = padding."""
        return torch.arange(self.length, device=self.lengths.device) < self.lengths.unsqueeze(1)

    @property
    def positions(self) -> Tensor:
        """(T,) int64: where each token stands in its text, from 0."""
        return self.padded_index % self.length

    @property
    def text_index(self) -> Tensor:
        """(T,) int64: the text of each token; N for a spare one behind the texts."""
        return self.padded_index // self.length

    def pad(self, packed: Tensor) -> Tensor:
        """(T, D) -> (N, L, D). Behind the end of a text are finite numbers, which attention masks."""
        width = packed.shape[1]
        if self.dense:
            return packed.view(self.count, self.length, width)
        return _spread(packed, self.padded_index, self.count * self.length).view(self.count, self.length, width)

    def pack(self, padded: Tensor) -> Tensor:
        """(N, L, ...) -> (T, ...)."""
        flat = padded.flatten(0, 1)
        return flat if self.dense else cast(Tensor, _Pack.apply(flat, self.padded_index))


def _spread(packed: Tensor, padded_index: Tensor, count: int) -> Tensor:
    """(T, ...) -> (count, ...): each token at its padded index, zeros elsewhere. One more place takes the spare tokens."""
    return packed.new_zeros(count + 1, *packed.shape[1:]).index_copy_(0, padded_index, packed)[:-1]


class _Pack(torch.autograd.Function):
    """``padded.index_select(0, padded_index)`` with another gradient. Spare ones apart, no two tokens have one padded index, so
    the gradient is written; that of ``index_select`` is added up, which is slow, and on a GPU in no fixed order."""

    @staticmethod
    def forward(ctx: Any, padded: Tensor, padded_index: Tensor) -> Tensor:
        ctx.save_for_backward(padded_index)
        ctx.count = len(padded)
        return padded.index_select(0, padded_index.clamp(max=len(padded) - 1))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (padded_index,) = ctx.saved_tensors
        return _spread(grad, padded_index, ctx.count), None


@dataclass(frozen=True)
class PackedTexts:
    """Token states of N texts: ``states`` (T, D) and where each stands."""

    states: Tensor
    packing: Packing

    @property
    def cls(self) -> Tensor:
        """The states of the first tokens, [CLS]: (N, D)."""
        return self.states.index_select(0, self.packing.starts)

    def padded(self) -> Tensor:
        """(N, L, D)."""
        return self.packing.pad(self.states)

    def select(self, index: Tensor, tokens: int | None = None, length: int | None = None) -> PackedTexts:
        """The texts numbered ``index`` (M,), in that order; ``tokens`` and ``length`` as in :meth:`Packing.of`, None: L stays."""
        lengths = self.packing.lengths.index_select(0, index)
        packing = Packing.of(lengths, length or self.packing.length, tokens)
        # Spare tokens, and padding in a dense packing, get any state.
        text, position = packing.text_index.clamp(max=len(index) - 1), packing.positions
        start = self.packing.starts.index_select(0, index).index_select(0, text)
        source = (start + position).clamp(max=len(self.states) - 1)
        return PackedTexts(self.states.index_select(0, source), packing)

    @staticmethod
    def concat(parts: Sequence[PackedTexts]) -> PackedTexts:
        """All texts of ``parts``."""
        return PackedTexts(torch.cat([part.states for part in parts]), Packing.concat([part.packing for part in parts]))

    @staticmethod
    def split(states: Tensor, packings: Sequence[Packing]) -> list[PackedTexts]:
        """Undo a concatenation: the texts of each of ``packings``, whose ``states`` (T, D) are one after the other."""
        parts = states.split([packing.tokens for packing in packings])
        return list(itertools.starmap(PackedTexts, zip(parts, packings, strict=True)))


def packings_of(texts: Sequence[Text]) -> list[Packing]:
    """The packing of each batch of texts; texts and their masked copies, which have one mask, share one."""
    by_mask: dict[int, Packing] = {}
    for text in texts:
        if id(text.mask) not in by_mask:
            by_mask[id(text.mask)] = Packing.of(text.mask.sum(dim=1), text.mask.shape[1], text.tokens)
    return [by_mask[id(text.mask)] for text in texts]


def on_host(tensor: Tensor) -> bool:
    """Whether the host can look at the numbers without waiting: not on a GPU, not for a fake tensor, not while compiling."""
    return tensor.device.type == "cpu" and type(tensor) is Tensor and not torch.compiler.is_compiling()
