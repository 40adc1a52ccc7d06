"""Keys and values that are projected only once, for the states that texts attend to and for generated tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class KeysValues:
    """Keys and values for cross-attention: R rows of K states, projected once per layer.

    A row is an image, a region, a video, a question or a text. The keys and values of an image depend on the image alone, so all
    texts that attend to it share them.

    Attributes:
        layers: the keys and the values of each layer, both (R', K, D).
        bias: (R', 1, 1, K), added to the attention scores: 0 = attend, -inf = do not; if None, texts attend to all states.
        rows: (R,) int64, indices of the selected rows among the R' stored rows. Selected rows are copied only when they are used.
            If None, all stored rows are used, in order.
    """

    layers: tuple[tuple[Tensor, Tensor], ...]
    bias: Tensor | None = None
    rows: Tensor | None = None

    def __len__(self) -> int:
        """R, the number of rows."""
        return len(self.layers[0][0]) if self.rows is None else len(self.rows)

    @property
    def device(self) -> torch.device:
        """Device of the keys and values."""
        return self.layers[0][0].device

    def same_tensors(self, other: KeysValues) -> bool:
        """True if both have the same keys and values. Their biases may differ, but either both or neither must have one."""
        return self.layers is other.layers and self.rows is other.rows and (self.bias is None) == (other.bias is None)

    def select(self, rows: Tensor) -> KeysValues:
        """The rows with the indices ``rows`` (M,) int64, in that order; nothing is copied yet."""
        return KeysValues(self.layers, self.bias, rows if self.rows is None else self.rows.index_select(0, rows))

    def split(self, sizes: Sequence[int]) -> list[KeysValues]:
        """Split the rows, in order and without a copy, into parts of ``sizes`` rows."""
        assert self.rows is None, "selected rows cannot be split: split before selecting"
        biases = [None] * len(sizes) if self.bias is None else self.bias.split(list(sizes))
        layers = [zip(keys.split(list(sizes)), values.split(list(sizes)), strict=True) for keys, values in self.layers]
        return [KeysValues(part, bias) for part, bias in zip(zip(*layers, strict=True), biases, strict=True)]


@dataclass(frozen=True)
class AttentionGroup:
    """Texts of one or more passes that attend to the same R rows of keys and values in one call of attention.

    Attributes:
        keys_values: of each pass. All passes share the same tensors, but their biases may differ.
        text_count: total number of texts. Each pass has R * S texts, of which text n attends to row n // S.
    """

    keys_values: tuple[KeysValues, ...]
    text_count: int

    def layer(self, index: int) -> AttentionGroup:
        """A group of the same texts, with the keys and values of layer ``index`` only."""
        of_layer = (KeysValues((each.layers[index],), each.bias, each.rows) for each in self.keys_values)
        return AttentionGroup(tuple(of_layer), self.text_count)

    def read(self) -> tuple[Tensor, Tensor]:
        """Keys and values (R, K, D) of a group with one layer; selected rows are copied."""
        ((keys, values),), rows = self.keys_values[0].layers, self.keys_values[0].rows
        return (keys, values) if rows is None else (keys.index_select(0, rows), values.index_select(0, rows))

    def joined_bias(self, queries_per_row: int) -> Tensor | None:
        """The bias (R, 1, 1, K) that all passes share, or (R, 1, passes * queries_per_row, K) if their biases differ.

        For example, texts of regions attend to the same tensors twice: for their boxes they see the whole image, for the other
        losses only their region.

        Args:
            queries_per_row: number of queries per row in each pass.
        """
        first, rows = self.keys_values[0].bias, self.keys_values[0].rows
        if first is None:
            return None
        shared = all(each.bias is first for each in self.keys_values)
        if shared and rows is None:
            return first
        biases, repeats = ([first], 1) if shared else ([each.bias for each in self.keys_values], queries_per_row)
        row_count = len(first) if rows is None else len(rows)
        joined = aligned_zeros((row_count, 1, len(biases) * repeats, first.shape[3]), first.dtype, first.device)
        for index, bias in enumerate(biases):
            assert bias is not None
            joined[:, :, index * repeats : (index + 1) * repeats] = bias if rows is None else bias.index_select(0, rows)
        return joined


def aligned_zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros of ``shape``. In memory the last axis is padded to a multiple of 8 elements, the alignment that GPU attention kernels
    require of a bias."""
    *others, length = shape
    return torch.zeros(*others, -(-length // 8) * 8, dtype=dtype, device=device)[..., :length]


class KVCache:
    """Keys and values (N, H, L, d) of all earlier tokens of N hypotheses, for each self-attention of a decoder."""

    def __init__(self) -> None:
        self.layers: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    def update(self, attention: nn.Module, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append the keys and values (N, H, L', d) of new tokens, and return the keys and values of all tokens."""
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
        """Keep the hypotheses with the indices ``hypotheses`` (M,) int64, in that order."""
        self.layers = {
            attention: (keys.index_select(0, hypotheses), values.index_select(0, hypotheses))
            for attention, (keys, values) in self.layers.items()
        }
