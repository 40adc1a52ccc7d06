"""Soft backgrounds of muted colours: flat tones, gradients and slow noise."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from demo.scenes.vocabulary import RGB

KINDS = ("flat", "gradient", "noise")

CONTRAST = 90.0
"""Desired RGB distance between the tones of a background and the colours on it."""

_NOISE_CELLS = 5


@dataclass(frozen=True)
class Background:
    """A background that mixes two similar muted tones. ``kind`` is one of :data:`KINDS`, and ``angle`` is the direction of a
    gradient in radians."""

    kind: str
    tones: tuple[RGB, RGB]
    angle: float
    noise_seed: int


def pick_background(rng: np.random.Generator, colours: Sequence[RGB]) -> Background:
    """Draws a background whose tones differ from ``colours``: the first of up to 24 random backgrounds that has enough contrast,
    or else the one with the most contrast."""
    best, best_distance = (_muted(rng), _muted(rng)), -1.0
    for _ in range(24):
        first = _muted(rng)
        second = _neighbour(rng, first)
        distance = min((math.dist(tone, colour) for tone in (first, second) for colour in colours), default=math.inf)
        if distance > best_distance:
            best, best_distance = (first, second), distance
        if distance >= CONTRAST:
            break
    kind = KINDS[rng.integers(len(KINDS))]
    return Background(kind, best, float(rng.uniform(0, 2 * math.pi)), int(rng.integers(2**31)))


def paint_background(background: Background, width: int, height: int) -> NDArray[np.float32]:
    """Returns the pixels of a background: (height, width, 3) float32 in [0, 255]."""
    first, second = (np.array(tone, dtype=np.float32) for tone in background.tones)
    if background.kind == "flat":
        return np.broadcast_to(first, (height, width, 3)).copy()
    x, y = np.meshgrid(np.linspace(-1, 1, width, dtype=np.float32), np.linspace(-1, 1, height, dtype=np.float32))
    if background.kind == "gradient":  # rises along the angle
        mix = (0.5 + 0.35 * (math.cos(background.angle) * x + math.sin(background.angle) * y)).astype(np.float32)
    else:
        mix = _slow_noise(background.noise_seed, x, y)
    painted: NDArray[np.float32] = (first + (second - first) * mix[..., None]).astype(np.float32)
    return painted


def _muted(rng: np.random.Generator) -> RGB:
    return _rgb(float(rng.uniform()), float(rng.uniform(0.04, 0.22)), float(rng.uniform(0.30, 0.93)))


def _neighbour(rng: np.random.Generator, tone: RGB) -> RGB:
    hue, saturation, value = colorsys.rgb_to_hsv(*(channel / 255 for channel in tone))
    step = float(rng.uniform(0.10, 0.18)) * (1 if value < 0.6 else -1)
    return _rgb(hue + float(rng.uniform(-0.08, 0.08)), saturation, value + step)


def _rgb(hue: float, saturation: float, value: float) -> RGB:
    red, green, blue = (round(255 * channel) for channel in colorsys.hsv_to_rgb(hue % 1, saturation, value))
    return red, green, blue


def _slow_noise(seed: int, x: NDArray[np.float32], y: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns random values in [0, 1] on a coarse grid, with smooth interpolation between the points of the grid."""
    grid = np.random.default_rng(seed).random((_NOISE_CELLS + 1, _NOISE_CELLS + 1), dtype=np.float32)
    u, v = (x + 1) / 2 * _NOISE_CELLS, (y + 1) / 2 * _NOISE_CELLS
    column, row = (np.minimum(part.astype(int), _NOISE_CELLS - 1) for part in (u, v))
    right, down = (part * part * (3 - 2 * part) for part in (u - column, v - row))
    top = grid[row, column] * (1 - right) + grid[row, column + 1] * right
    bottom = grid[row + 1, column] * (1 - right) + grid[row + 1, column + 1] * right
    blended: NDArray[np.float32] = (top * (1 - down) + bottom * down).astype(np.float32)
    return blended
