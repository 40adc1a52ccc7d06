"""Resizing of position tables to a different patch grid.

BEiT's relative position biases are resized as in the authors' code: the patch offsets of the source table are spread in a
geometric progression, and a bicubic spline through them is evaluated at the target's offsets. The three rows for the [CLS] token
are kept. Absolute positions, which other ViTs use, are resized by bicubic interpolation, as in DINOv2.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

CLS_ROWS = 3


def resize_bias_table(table: Tensor, rows: int, columns: int) -> Tensor:
    """Resizes a table of position biases to a grid of patches: from ((2 side - 1)^2 + 3, heads), for a square grid, to
    ((2 rows - 1) (2 columns - 1) + 3, heads).

    Raises:
        ValueError: if the table does not belong to a square grid.
    """
    # Imported here because the import takes a second, and most runs do not resize a table.
    from scipy.interpolate import RectBivariateSpline

    height, width = 2 * rows - 1, 2 * columns - 1
    if table.shape[0] == height * width + CLS_ROWS:
        return table
    source_side = table_side(table.shape[0])
    offsets, extra = table[:-CLS_ROWS], table[-CLS_ROWS:]
    (source_y, read_y), (source_x, read_x) = (_offsets(source_side, side) for side in (height, width))
    grids = offsets.double().numpy().reshape(source_side, source_side, -1)
    resized = [
        RectBivariateSpline(source_y, source_x, grids[:, :, head], kx=3, ky=3, s=0)(read_y, read_x)
        for head in range(grids.shape[2])
    ]
    flat = torch.from_numpy(np.stack(resized, axis=2).reshape(height * width, -1)).to(table.dtype)
    return torch.cat([flat, extra])


def resize_positions(table: Tensor, rows: int, columns: int, tokens: int) -> Tensor:
    """Resizes absolute positions from (1, tokens + side^2, D), for a square grid, to (1, tokens + rows * columns, D). The
    positions of the ``tokens`` before the patches ([CLS], registers) are kept.

    The interpolation is bicubic without antialiasing, which is how DINOv2 resizes its table for each image size. With
    antialiasing, the outputs would differ from those of DINOv2's code.

    Raises:
        ValueError: if the table does not belong to a square grid.
    """
    if table.dim() != 3 or table.shape[0] != 1:
        raise ValueError(f"its shape {tuple(table.shape)} is not (1, tokens, width)")
    side = math.isqrt(max(0, table.shape[1] - tokens))
    if side < 1 or side * side + tokens != table.shape[1]:
        raise ValueError(f"a table of {table.shape[1]} positions does not belong to a square patch grid")
    grid = table[:, tokens:].float().transpose(1, 2).unflatten(2, (side, side))
    resized = F.interpolate(grid, (rows, columns), mode="bicubic", align_corners=False, antialias=False)
    return torch.cat([table[:, :tokens], resized.flatten(2).transpose(1, 2).to(table.dtype)], dim=1)


def offsets_side(rows: int) -> int | None:
    """Returns S for a table whose ``rows`` position biases belong to S x S patch offsets, or None if the grid is not square."""
    side = math.isqrt(max(0, rows - CLS_ROWS))
    return side if side % 2 and side * side == rows - CLS_ROWS else None


def table_side(rows: int) -> int:
    """Returns S for a table of S x S patch offsets that can be resized; see :func:`offsets_side`.

    Raises:
        ValueError: if the table does not belong to a square patch grid, or is too small.
    """
    side = offsets_side(rows)
    if side is None:
        raise ValueError(f"a bias table of {rows} rows does not belong to a square patch grid")
    if side < 5:
        raise ValueError(f"a bias table of {rows} rows is too small for a cubic spline")
    return side


def _offsets(source_side: int, target_side: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the source's offsets along a side, and the positions at which the spline is evaluated."""
    target = np.arange(target_side) - target_side // 2
    source = target.astype(float) if source_side == target_side else _spread(source_side, target_side)
    # The spread offsets can end before the target's last offset. Beyond the last spread offset, the spline keeps its last value.
    return source, np.clip(target, source[0], source[-1])


def _spread(source_side: int, target_side: int) -> np.ndarray:
    """Positions of the source's offsets relative to the target's: a geometric progression of steps 1, q, q^2, … on both sides."""
    steps, reach = source_side // 2, target_side // 2
    low, high, ratio = 1.01, 1.5, 1.25
    while high - low > 1e-6:
        ratio = (low + high) / 2
        if (1 - ratio**steps) / (1 - ratio) > reach:
            high = ratio
        else:
            low = ratio
    distances = np.cumsum(ratio ** np.arange(steps))
    return np.concatenate([-distances[::-1], [0.0], distances])
