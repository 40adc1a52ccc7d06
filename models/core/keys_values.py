"""Keys and values that are projected only once: for the states that texts attend to, and for the tokens generated so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from models.core.packing import select_rows


@dataclass(frozen=True)
class KeysValues:
    """Keys and values for cross-attention: B rows of K states, projected once per layer.

    A row is an image, a region, a video, a question or a text. In pre-training, each text has its own row; the row of a region
    contains copies of the keys and values of its image, which are projected once. In captioning, answering and re-ranking,
    several texts share a row.

    Attributes:
        layers: for each layer, the keys and the values, each (B', K, D), where B' is the number of stored rows.
        bias: (B', 1, 1, K), added to the attention scores: 0 = attend, -inf = do not; None if texts attend to all states.
        selected: (B,) int64, indices of the selected rows among the B' stored rows. Selected rows are copied only when they are
            used. If None, all stored rows are used, in order.
    """

    layers: tuple[tuple[Tensor, Tensor], ...]
    bias: Tensor | None = None
    selected: Tensor | None = None

    def __len__(self) -> int:
        """B, the number of rows."""
        return len(self.layers[0][0]) if self.selected is None else len(self.selected)

    @property
    def device(self) -> torch.device:
        """Device of the keys and values."""
        return self.layers[0][0].device

    def select(self, rows: Tensor) -> KeysValues:
        """The rows with the indices ``rows`` (M,) int64, in that order; nothing is copied yet."""
        return replace(self, selected=rows if self.selected is None else self.selected.index_select(0, rows))

    def shares_rows_with(self, other: KeysValues) -> bool:
        """True if the rows are the same rows of the same tensors, with a bias in both or in neither. The biases may differ, as in
        the two results of :meth:`models.core.fusion.FusionEncoder.project_regions`. Only identical tensors count, because
        comparing the values of equal ones would take longer than it saves."""
        return (
            self.layers[0][0] is other.layers[0][0]  # torch.compile cannot compare tuples by identity
            and self.selected is other.selected
            and (self.bias is None) == (other.bias is None)
        )

    def split(self, sizes: Sequence[int]) -> list[KeysValues]:
        """Splits the rows, in order and without copying them, into groups of ``sizes`` rows."""
        assert self.selected is None, "selected rows cannot be split: split before selecting"
        biases = [None] * len(sizes) if self.bias is None else self.bias.split(list(sizes))
        layers = [zip(keys.split(list(sizes)), values.split(list(sizes)), strict=True) for keys, values in self.layers]
        return [KeysValues(*part) for part in zip(zip(*layers, strict=True), biases, strict=True)]

    def layer(self, index: int) -> tuple[Tensor, Tensor]:
        """Returns the keys and the values, each (B, K, D), of one layer. Selected rows are copied."""
        keys, values = self.layers[index]
        if self.selected is None:
            return keys, values
        return select_rows(keys, self.selected), select_rows(values, self.selected)

    def bias_of_rows(self) -> Tensor:
        """Returns the bias (B, 1, 1, K) of the rows. Selected rows are copied."""
        assert self.bias is not None
        return self.bias if self.selected is None else self.bias.index_select(0, self.selected)


@dataclass(frozen=True)
class SharedRows:
    """Rows of keys and values to which the texts of one or more passes attend in the same call of attention
    (:meth:`models.core.fusion.FusionEncoder.fuse`).

    For example, texts about regions attend to the same tensors twice: to the whole image to predict their boxes, and only to
    their region for the other losses.

    Attributes:
        keys_values: B rows, without a bias.
        pass_count: number of passes that attend to these rows.
        text_count: number of texts of these passes, pass_count * B * S with S texts per row and pass.
        bias: the bias of all passes: (B, 1, 1, K) if it is the same for all of them; otherwise, for each query of each pass,
            (B, 1, pass_count * S * L, K); None if all texts attend to all states. Attention keeps it for the backward pass, so
            it is made once for all layers that have the same queries, and not in each layer.
    """

    keys_values: KeysValues
    pass_count: int
    text_count: int
    bias: Tensor | None

    @staticmethod
    def of(passes: Sequence[KeysValues], text_count: int, length: int) -> list[SharedRows]:
        """Groups neighbouring passes that share their rows (:meth:`KeysValues.shares_rows_with`).

        Args:
            passes: the keys and values of each pass.
            text_count: N, number of texts of all passes. In each pass, a row serves the same number S of texts.
            length: number of queries of each text, including padding.
        """
        groups: list[list[KeysValues]] = []
        for each in passes:
            if groups and groups[-1][-1].shares_rows_with(each):
                groups[-1].append(each)
            else:
                groups.append([each])
        texts_per_row = text_count // sum(map(len, passes)) if passes else 0
        return [
            SharedRows(
                replace(group[0], bias=None),
                pass_count=len(group),
                text_count=len(group) * len(group[0]) * texts_per_row,
                bias=_joined_bias(group, texts_per_row * length),
            )
            for group in groups
        ]


def _joined_bias(passes: Sequence[KeysValues], queries_per_row: int) -> Tensor | None:
    """Returns :attr:`SharedRows.bias`, given the number of queries per row in each pass. If all passes have the same bias, it is
    the same for all queries; otherwise, the bias of each pass is repeated for the queries of this pass."""
    first = passes[0]
    if first.bias is None:
        return None
    same = all(each.bias is first.bias for each in passes)
    if same and first.selected is None:
        return first.bias
    if same:
        joined = first.bias_of_rows()
    else:
        joined = torch.cat([each.bias_of_rows().expand(-1, -1, queries_per_row, -1) for each in passes], dim=2)
    # Selecting rows and concatenating lose the alignment that GPU kernels need.
    return aligned_zeros(tuple(joined.shape), joined.dtype, joined.device).copy_(joined)


def aligned_zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Returns zeros of ``shape``. In memory, the last axis is padded to a multiple of 8 elements, because GPU attention kernels
    require this alignment for a bias."""
    *others, length = shape
    return torch.zeros(*others, -(-length // 8) * 8, dtype=dtype, device=device)[..., :length]


class KVCache:
    """Keys and values (N, heads, L, d) of all earlier tokens of N hypotheses (partly generated texts), for each self-attention
    layer of a decoder."""

    def __init__(self) -> None:
        self.layers: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    def update(self, attention: nn.Module, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Appends the keys and values (N, heads, M, d) of new tokens, and returns the keys and values of all tokens."""
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
