"""Draws a composed scene."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from demo.scenes.backgrounds import paint_background
from demo.scenes.compose import Scene


def draw_scene(scene: Scene) -> NDArray[np.uint8]:
    """Draws a scene: (height, width, 3) uint8 RGB. Outside the boxes of objects, there is only the background."""
    canvas = paint_background(scene.background, scene.width, scene.height)
    for obj in scene.objects:
        coverage, accent = obj.raster()
        base, second = (np.array(tone, dtype=np.float32) for tone in (obj.rgb, obj.accent))
        fill = base + (second - base) * accent[..., None]
        x, y, w, h = obj.box
        under = canvas[y : y + h, x : x + w]
        under += (fill - under) * coverage[..., None]
    return np.clip(np.rint(canvas), 0, 255).astype(np.uint8)
