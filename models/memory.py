"""Keys and values that are projected once: of states that texts attend to, and of tokens that have been generated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

KeysValues = tuple[Tensor, Tensor]
"""Keys and values, each (R, K, D)."""


@dataclass(frozen=True)
class CrossMemory:
    """The states that texts attend to by cross-attention, R rows of K, projected to keys and values once per layer.

    A row is an image, a region, a video, a question or a text. The keys and values of an image depend on the image alone, so all
    texts that attend to it share them.

    ``layers``: keys and values of each layer, (R', K, D). ``mask`` (R', 1, 1, K), added to the scores: 0 = attend, -inf = not;
    None: all is attended to. ``rows`` (R,) int64: which of the R' stored rows these are, copied when they are used; None: all, in
    order.
    """

    layers: tuple[KeysValues, ...]
    mask: Tensor | None = None
    rows: Tensor | None = None

    def __len__(self) -> int:
        """R."""
        return len(self.layers[0][0]) if self.rows is None else len(self.rows)

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.layers[0][0].device

    def select(self, rows: Tensor) -> CrossMemory:
        """The rows numbered ``rows`` (M,), in that order."""
        return CrossMemory(self.layers, self.mask, rows if self.rows is None else self.rows.index_select(0, rows))

    def split(self, sizes: Sequence[int]) -> list[CrossMemory]:
        """Parts of so many rows, in order, without a copy."""
        assert self.rows is None, "rows are split before they are selected"
        masks = [None] * len(sizes) if self.mask is None else self.mask.split(list(sizes))
        layers = [zip(keys.split(list(sizes)), values.split(list(sizes)), strict=True) for keys, values in self.layers]
        return [CrossMemory(own, mask) for own, mask in zip(zip(*layers, strict=True), masks, strict=True)]


@dataclass(frozen=True)
class Attended:
    """A memory of R rows with the texts that attend to it, in ``passes`` over all rows of equally many texts.

    In a pass of R * S texts, text m attends to row m // S.
    """

    memory: CrossMemory
    texts: int
    passes: int = 1

    def layer(self, index: int) -> LayerMemory:
        """The part of one layer."""
        memory = self.memory
        return LayerMemory(*memory.layers[index], memory.mask, memory.rows, self.texts, self.passes)


@dataclass(frozen=True)
class LayerMemory:
    """One layer of :class:`Attended`."""

    keys: Tensor
    values: Tensor
    mask: Tensor | None
    rows: Tensor | None
    texts: int
    passes: int

    def read(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Keys and values (R, K, D) and mask (R, 1, 1, K) of the rows."""
        if self.rows is None:
            return self.keys, self.values, self.mask
        keys, values = self.keys.index_select(0, self.rows), self.values.index_select(0, self.rows)
        return keys, values, None if self.mask is None else self.mask.index_select(0, self.rows)


class KVCache:
    """Keys and values, (N, heads, L, d), of the tokens of N hypotheses so far, for each self-attention of a decoder."""

    def __init__(self) -> None:
        self.layers: dict[nn.Module, KeysValues] = {}

    def update(self, attention: nn.Module, keys: Tensor, values: Tensor) -> KeysValues:
        """Append the keys and values of new tokens, (N, heads, L', d); returns those of all tokens."""
        if attention in self.layers:
            past_keys, past_values = self.layers[attention]
            keys, values = torch.cat([past_keys, keys], dim=2), torch.cat([past_values, values], dim=2)
        self.layers[attention] = keys, values
        return keys, values

    def crop(self, length: int) -> None:
        """Forget all tokens after the first ``length``."""
        self.layers = {key: (keys[:, :, :length], values[:, :, :length]) for key, (keys, values) in self.layers.items()}

    def reorder(self, hypotheses: Tensor) -> None:
        """Go on with these hypotheses, (M,) int64."""
        self.layers = {
            key: (keys.index_select(0, hypotheses), values.index_select(0, hypotheses))
            for key, (keys, values) in self.layers.items()
        }
