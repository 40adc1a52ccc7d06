"""Keys and values that are projected only once: for the states that texts attend to, and for the tokens generated so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class KeysValues:
    """Keys and values for cross-attention: R rows of K states, projected once per layer.

    A row is an image, a region, a video, a question or a text. The keys and values of an image depend only on the image, so all
    texts that attend to the image share them.

    Attributes:
        layers: for each layer, the keys and the values, each (R', K, D), where R' is the number of stored rows.
        biases: a bias (R', 1, 1, K) for each pass that attends to these rows (:class:`models.core.fusion.FusionQueue`); there is
            a single bias until passes are merged. Biases are added to the attention scores: 0 = attend, -inf = do not. None
            stands for attending to all states.
        rows: (R,) int64, indices of the selected rows among the R' stored rows. Selected rows are copied only when they are used.
            If None, all stored rows are used, in order.
    """

    layers: tuple[tuple[Tensor, Tensor], ...]
    biases: tuple[Tensor | None, ...] = (None,)
    rows: Tensor | None = None

    def __len__(self) -> int:
        """R, the number of rows."""
        return len(self.layers[0][0]) if self.rows is None else len(self.rows)

    @property
    def passes(self) -> int:
        """Number of passes that attend to these rows."""
        return len(self.biases)

    @property
    def device(self) -> torch.device:
        """Device of the keys and values."""
        return self.layers[0][0].device

    def select(self, rows: Tensor) -> KeysValues:
        """The rows with the indices ``rows`` (M,) int64, in that order; nothing is copied yet."""
        return replace(self, rows=rows if self.rows is None else self.rows.index_select(0, rows))

    def split(self, sizes: Sequence[int]) -> list[KeysValues]:
        """Splits the rows, in order and without copying them, into groups of ``sizes`` rows."""
        assert self.rows is None, "selected rows cannot be split: split before selecting"
        biases = [[None] * len(sizes) if bias is None else bias.split(list(sizes)) for bias in self.biases]
        layers = [zip(keys.split(list(sizes)), values.split(list(sizes)), strict=True) for keys, values in self.layers]
        return [KeysValues(*part) for part in zip(zip(*layers, strict=True), zip(*biases, strict=True), strict=True)]

    @staticmethod
    def merge(passes: Sequence[KeysValues]) -> list[KeysValues]:
        """Merges adjacent passes with the same rows of the same tensors, so that their texts share one call of attention.

        For example, texts about regions attend to the same tensors twice: to the whole image to predict their boxes, and only to
        their region for the other losses. The biases of merged passes may differ, but either all or none of them must be None.
        """
        merged: list[KeysValues] = []
        for each in passes:
            last = merged[-1] if merged else None
            if (
                last is not None
                and last.layers is each.layers
                and last.rows is each.rows
                and (last.biases[0] is None) == (each.biases[0] is None)
            ):
                merged[-1] = replace(last, biases=(*last.biases, *each.biases))
            else:
                merged.append(each)
        return merged

    def layer(self, index: int) -> KeysValues:
        """Returns the keys and values of layer ``index`` only."""
        return replace(self, layers=(self.layers[index],))

    def read(self) -> tuple[Tensor, Tensor]:
        """Returns the keys and the values, each (R, K, D), of the only layer. Selected rows are copied."""
        ((keys, values),), rows = self.layers, self.rows
        return (keys, values) if rows is None else (keys.index_select(0, rows), values.index_select(0, rows))

    def joined_bias(self, queries_per_row: int) -> Tensor | None:
        """Returns the bias (R, 1, 1, K) if all passes have the same bias. Otherwise, returns the biases of all passes, repeated
        for each query, (R, 1, passes * queries_per_row, K). ``queries_per_row`` is the number of queries per row in each pass."""
        first, rows = self.biases[0], self.rows
        if first is None:
            return None
        shared = all(bias is first for bias in self.biases)
        if shared and rows is None:
            return first
        biases, repeats = ((first,), 1) if shared else (self.biases, queries_per_row)
        joined = aligned_zeros((len(self), 1, len(biases) * repeats, first.shape[3]), first.dtype, first.device)
        for index, bias in enumerate(biases):
            assert bias is not None
            joined[:, :, index * repeats : (index + 1) * repeats] = bias if rows is None else bias.index_select(0, rows)
        return joined


def aligned_zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Returns zeros of ``shape``. In memory, the last axis is padded to a multiple of 8 elements, because GPU attention kernels
    require this alignment for a bias."""
    *others, length = shape
    return torch.zeros(*others, -(-length // 8) * 8, dtype=dtype, device=device)[..., :length]


class KVCache:
    """Keys and values (N, H, L, d) of all earlier tokens of N hypotheses (partly generated texts), for each self-attention layer
    of a decoder."""

    def __init__(self) -> None:
        self.layers: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    def update(self, attention: nn.Module, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Appends the keys and values (N, H, L', d) of new tokens, and returns the keys and values of all tokens."""
        if attention in self.layers:
            past_keys, past_values = self.layers[attention]
            keys, values = torch.cat([past_keys, keys], dim=2), torch.cat([past_values, values], dim=2)
        self.layers[attention] = keys, values
        return keys, values

    def crop(self, length: int) -> None:
        """Keeps only the first ``length`` tokens."""
        self.layers = {
            attention: (keys[:, :, :length], values[:, :, :length]) for attention, (keys, values) in self.layers.items()
        }

    def reorder(self, hypotheses: Tensor) -> None:
        """Keeps the hypotheses with the indices ``hypotheses`` (M,) int64, in that order."""
        self.layers = {
            attention: (keys.index_select(0, hypotheses), values.index_select(0, hypotheses))
            for attention, (keys, values) in self.layers.items()
        }
