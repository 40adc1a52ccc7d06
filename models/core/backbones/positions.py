"""Fixed position embeddings of patches."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from batches.images import Grid
from utils.errors import UserError


def padded_sincos_positions(grids: Sequence[Grid], length: int, width: int) -> Tensor:
    """Returns the positions (I, ``length``, width) of :func:`sincos_positions` for images that have their own grids, padded with
    zeros."""
    each = {grid: sincos_positions(*grid, width) for grid in set(grids)}
    return torch.stack([F.pad(each[grid], (0, 0, 0, length - len(each[grid]))) for grid in grids])


def sincos_positions(rows: int, columns: int, width: int) -> Tensor:
    """Two-dimensional sine-cosine positions (rows * columns, width) in [-1, 1]. The first half of the channels encodes y, the
    second half x.

    Raises:
        UserError: if ``width`` is not a multiple of 4.
    """
    if width % 4:
        raise UserError(
            f"model.vision.width is {width}, but sincos positions need a multiple of 4",
            remedy=f"use {width + -width % 4}",
        )
    frequencies = torch.exp(-math.log(10000.0) * torch.arange(width // 4) / (width // 4))
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    angles = [axis.reshape(-1, 1) * frequencies for axis in (y, x)]
    return torch.cat([function(angle) for angle in angles for function in (torch.sin, torch.cos)], dim=1)
