"""Keys and values, projected once: of the states that texts attend to, and of generated tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

KeysValues = tuple[Tensor, Tensor]
"""Keys and values, each (..., D), or (N, heads, L, d) in a :class:`KVCache`."""


@dataclass(frozen=True)
class CrossMemory:
    """Keys and values of the states that texts attend to by cross-attention: R rows of K states, projected once per layer.

    A row is an image, a region, a video, a question or a text. The keys and values of an image depend on the image alone, so all
    texts that attend to it share them.

    ``layers``: keys and values of each layer, (R', K, D). ``mask`` (R', 1, 1, K) is added to the scores: 0 = attend, -inf = not;
    None: texts attend to all states. ``rows`` (R,) int64: the numbers of this memory's rows among the R' stored ones, which are
    copied at use; None: all, in order.
    """

    layers: tuple[KeysValues, ...]
    mask: Tensor | None = None
    rows: Tensor | None = None

    def __len__(self) -> int:
        """R, the number of rows."""
        return len(self.layers[0][0]) if self.rows is None else len(self.rows)

    @property
    def device(self) -> torch.device:
        """Device of the keys and values."""
        return self.layers[0][0].device

    def shares_keys(self, other: CrossMemory) -> bool:
        """Whether both have the same keys and values. Their masks may differ, if both have one."""
        return self.layers is other.layers and self.rows is other.rows and (self.mask is None) == (other.mask is None)

    def select(self, rows: Tensor) -> CrossMemory:
        """The memory of rows ``rows`` (M,) int64, in that order; nothing is copied yet."""
        return CrossMemory(self.layers, self.mask, rows if self.rows is None else self.rows.index_select(0, rows))

    def split(self, sizes: Sequence[int]) -> list[CrossMemory]:
        """Split the rows, in order and without a copy, into memories of ``sizes`` rows."""
        assert self.rows is None, "a memory with selected rows cannot be split: split before they are selected"
        masks = [None] * len(sizes) if self.mask is None else self.mask.split(list(sizes))
        layers = [zip(keys.split(list(sizes)), values.split(list(sizes)), strict=True) for keys, values in self.layers]
        return [CrossMemory(part, mask) for part, mask in zip(zip(*layers, strict=True), masks, strict=True)]


@dataclass(frozen=True)
class MemoryGroup:
    """Memories of R rows that share their keys and values, with the texts that attend to them. Their masks may differ.

    Each memory has one pass of R * S texts, of which text m attends to row m // S. ``text_count`` counts the texts of all passes.
    """

    memories: tuple[CrossMemory, ...]
    text_count: int

    def layer(self, index: int) -> GroupKeysValues:
        """Keys and values of layer ``index``."""
        first = self.memories[0]
        return GroupKeysValues(
            *first.layers[index], tuple(memory.mask for memory in self.memories), first.rows, self.text_count
        )


@dataclass(frozen=True)
class GroupKeysValues:
    """One layer of :class:`MemoryGroup`; ``masks`` has one entry per pass."""

    keys: Tensor
    values: Tensor
    masks: tuple[Tensor | None, ...]
    rows: Tensor | None
    text_count: int

    @property
    def pass_count(self) -> int:
        """The number of passes."""
        return len(self.masks)

    def read(self) -> KeysValues:
        """Keys and values (R, K, D) of the selected rows."""
        if self.rows is None:
            return self.keys, self.values
        return self.keys.index_select(0, self.rows), self.values.index_select(0, self.rows)

    def mask(self, queries: int) -> Tensor | None:
        """The mask (R, 1, 1, K) of all passes, or where theirs differ (R, 1, passes * queries, K), for ``queries`` per pass."""
        first = self.masks[0]
        if first is None:
            return None
        one_for_all = all(mask is first for mask in self.masks)
        if one_for_all and self.rows is None:
            return first
        masks, repeats = ((first,), 1) if one_for_all else (self.masks, queries)
        rows = len(first) if self.rows is None else len(self.rows)
        joined = aligned_zeros((rows, 1, len(masks) * repeats, first.shape[3]), first.dtype, first.device)
        for number, mask in enumerate(masks):
            assert mask is not None
            selected = mask if self.rows is None else mask.index_select(0, self.rows)
            joined[:, :, number * repeats : (number + 1) * repeats] = selected
        return joined


def aligned_zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros of ``shape`` whose last axis begins at multiples of 8 numbers in memory, as attention kernels of GPUs want masks."""
    *others, length = shape
    return torch.zeros(*others, -(-length // 8) * 8, dtype=dtype, device=device)[..., :length]


class KVCache:
    """Keys and values, (N, heads, L, d), of the tokens of N hypotheses so far, for each self-attention of a decoder."""

    def __init__(self) -> None:
        self.layers: dict[nn.Module, KeysValues] = {}

    def update(self, attention: nn.Module, keys: Tensor, values: Tensor) -> KeysValues:
        """Append the keys and values (N, heads, L', d) of new tokens, and return those of all tokens."""
        if attention in self.layers:
            past_keys, past_values = self.layers[attention]
            keys, values = torch.cat([past_keys, keys], dim=2), torch.cat([past_values, values], dim=2)
        self.layers[attention] = keys, values
        return keys, values

    def crop(self, length: int) -> None:
        """Drop all tokens after the first ``length``."""
        self.layers = {
            attention: (keys[:, :, :length], values[:, :, :length]) for attention, (keys, values) in self.layers.items()
        }

    def reorder(self, hypotheses: Tensor) -> None:
        """Keep the hypotheses numbered ``hypotheses`` (M,) int64, in that order."""
        self.layers = {
            attention: (keys.index_select(0, hypotheses), values.index_select(0, hypotheses))
            for attention, (keys, values) in self.layers.items()
        }
