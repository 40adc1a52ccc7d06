"""Outlines and textures: computes the anti-aliased pixels of an object from its form."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from demo.scenes.vocabulary import PLAIN

SAMPLES = 4
"""Samples per pixel along each axis."""

VISIBLE = 0.25
"""Minimum coverage of a pixel. Pixels with less coverage are dropped, so that all pixels of a shape are visible."""

Plane = NDArray[np.float32]
Mask = NDArray[np.bool_]


class Form(NamedTuple):
    """Parameters from which the pixels of an object are drawn. Lengths are in pixels, angles in radians."""

    shape: str
    texture: str
    extent: float
    angle: float
    texture_angle: float
    texture_period: float


class Raster(NamedTuple):
    """The pixels of an object, cropped to its tight box.

    Attributes:
        coverage: (h, w) float32, fraction of each pixel that the object covers: 0, or in [VISIBLE, 1]. No border row or column is
            all 0.
        accent: (h, w) float32 in [0, 1], fraction of each pixel with the second tone of the texture.
    """

    coverage: Plane
    accent: Plane


@functools.lru_cache(maxsize=64)
def rasterise(form: Form) -> Raster:
    """Draws a form. The result is cached and must not be modified."""
    side = math.ceil(form.extent * 1.3) + 2
    steps = ((np.arange(side * SAMPLES) + 0.5) / SAMPLES - side / 2).astype(np.float32)
    x, y = _turned(steps[None, :], steps[:, None], form.angle)
    half = form.extent / 2
    coverage = _pixel_means(OUTLINES[form.shape](x / half, y / half), side)
    coverage[coverage < VISIBLE] = 0
    if form.texture == PLAIN:
        accent = np.zeros_like(coverage)
    else:
        x, y = _turned(steps[None, :], steps[:, None], form.texture_angle)
        accent = _pixel_means(PATTERNS[form.texture](x / form.texture_period, y / form.texture_period), side)
    rows, columns = np.flatnonzero(coverage.any(axis=1)), np.flatnonzero(coverage.any(axis=0))
    window = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    return Raster(coverage[window], accent[window])


def _turned(x: Plane, y: Plane, angle: float) -> tuple[Plane, Plane]:
    cosine, sine = np.float32(math.cos(angle)), np.float32(math.sin(angle))
    return cosine * x + sine * y, cosine * y - sine * x


def _pixel_means(samples: Mask, side: int) -> Plane:
    counts = samples.reshape(side, SAMPLES, side, SAMPLES).sum(axis=(1, 3), dtype=np.float32)
    means: Plane = counts / np.float32(SAMPLES**2)
    return means


def _star(u: Plane, v: Plane) -> Mask:
    """A star with five points, one of which points up. The plane is folded onto half a point."""
    sector = 2 * math.pi / 5
    inner_x, inner_y = 0.47 * math.cos(sector / 2), 0.47 * math.sin(sector / 2)
    v = (v - 0.08) / 1.06
    angle = abs((np.arctan2(u, -v) + sector / 2) % sector - sector / 2)
    radius = np.hypot(u, v)
    along, across = radius * np.cos(angle), radius * np.sin(angle)
    inside: Mask = (1 - along) * inner_y >= across * (1 - inner_x)
    return inside


def _heart(u: Plane, v: Plane) -> Mask:
    """The sextic (x² + y² - 1)³ <= x² y³, centred."""
    x, y = u * 1.18, 0.12 - v * 1.16
    ring = x * x + y * y - 1
    inside: Mask = ring * ring * ring <= x * x * y * y * y
    return inside


OUTLINES: dict[str, Callable[[Plane, Plane], Mask]] = {
    "circle": lambda u, v: u * u + v * v <= 0.96,
    "square": lambda u, v: np.maximum(abs(u), abs(v)) <= 0.86,
    "triangle": lambda u, v: (v <= 0.82) & (abs(u) <= (v + 0.98) * (1.02 / 1.8)),
    "star": _star,
    "cross": lambda u, v: (np.minimum(abs(u), abs(v)) <= 0.34) & (np.maximum(abs(u), abs(v)) <= 0.96),
    "diamond": lambda u, v: abs(u) / 0.78 + abs(v) / 1.04 <= 1,
    "heart": _heart,
}
"""Masks of the inside of each shape, as functions of u (to the right) and v (down), both about -1 to 1 over the extent."""

PATTERNS: dict[str, Callable[[Plane, Plane], Mask]] = {
    "striped": lambda x, y: np.broadcast_to((x + 0.2) % 1 < 0.42, np.broadcast_shapes(x.shape, y.shape)),
    "dotted": lambda x, y: (x % 1 - 0.5) ** 2 + (y % 1 - 0.5) ** 2 <= 0.1,
    "checked": lambda x, y: (np.floor(x + 0.5) + np.floor(y + 0.5)) % 2 == 1,
    "wavy": lambda x, y: (y + 0.3 * np.sin(2 * np.pi * x)) % 1 < 0.42,
    "ringed": lambda x, y: abs(np.hypot(x % 1 - 0.5, y % 1 - 0.5) - 0.32) <= 0.1,
    "gridded": lambda x, y: np.minimum(x % 1, y % 1) < 0.26,
}
"""Masks of the second tone of each texture, as functions of coordinates in periods."""
