"""Stacks the token ids of several texts into a tensor, hashes texts for comparison, and shuffles sequences."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

T = TypeVar("T")

_KEY_FACTOR, _KEY_OFFSET = 6364136223846793005, 1442695040888963407


def shuffled(rng: np.random.Generator, items: Sequence[T]) -> list[T]:
    """Returns all items in random order."""
    return [items[index] for index in rng.permutation(len(items))]


def text_ids(ids: Tensor, mask: Tensor) -> Tensor:
    """Hashes each text. ``ids`` and ``mask`` are (N, L), and the result is (N,) int64. Two hashes are equal if and only if the
    texts are equal (up to 64-bit collisions).

    The hash is a polynomial in the ids modulo 2^64, so padding does not change it.
    """
    following = mask.sum(dim=1, keepdim=True) - mask.cumsum(dim=1)
    # This product and all arithmetic below wrap around at 2^64.
    powers = torch.full((ids.shape[1] + 1,), _KEY_FACTOR).cumprod(dim=0).roll(1)
    powers[:1] = 1
    return ((ids + _KEY_OFFSET) * powers[following] * mask).sum(dim=1)


def stack_rows(rows: Sequence[Sequence[int]], fill: int, length: int | None = None) -> Tensor:
    """Stacks N lists of integers into an (N, L) int64 tensor. Lists are right-padded with ``fill`` to the longest list or to
    ``length``."""
    lengths = np.array([len(row) for row in rows], np.int64)
    width = int(lengths.max(initial=0)) if length is None else length
    out = np.full((len(rows), width), fill, np.int64)
    out[np.arange(width) < lengths[:, None]] = np.fromiter(itertools.chain.from_iterable(rows), np.int64, lengths.sum())
    return torch.from_numpy(out)
