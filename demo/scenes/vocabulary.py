"""Vocabulary of the scenes: shapes, colours, textures, sizes and relations by name."""

from __future__ import annotations

from typing import NamedTuple

RGB = tuple[int, int, int]

SHAPES = ("circle", "square", "triangle", "star", "cross", "diamond", "heart")


class Colour(NamedTuple):
    """A colour of objects. ``rgb`` fills the shape, and ``accent`` (same hue, different lightness) draws its texture."""

    rgb: RGB
    accent: RGB


COLOURS: dict[str, Colour] = {
    "red": Colour((214, 36, 40), (112, 8, 18)),
    "orange": Colour((248, 138, 24), (160, 74, 0)),
    "yellow": Colour((252, 220, 44), (172, 134, 0)),
    "green": Colour((44, 164, 64), (8, 84, 32)),
    "cyan": Colour((64, 212, 222), (8, 116, 136)),
    "blue": Colour((36, 76, 220), (158, 186, 255)),
    "purple": Colour((128, 44, 172), (214, 168, 242)),
    "pink": Colour((250, 144, 196), (190, 60, 126)),
}

PLAIN = "plain"
"""The texture that is never mentioned."""

TEXTURES = (PLAIN, "striped", "dotted", "checked")

SIZES: dict[str, tuple[float, float]] = {"small": (0.20, 0.25), "large": (0.33, 0.41)}
"""Bounds of the extent of an object, as a fraction of the shorter side of the image. There is a gap between small and large."""

MAX_LARGE = {1: 1, 2: 2, 3: 3, 4: 2, 5: 1}
"""Maximum number of large objects, by the number of objects in the scene."""

OBJECT_COUNTS = {1: 0.10, 2: 0.25, 3: 0.30, 4: 0.20, 5: 0.15}
"""Probability of each number of objects in a scene."""

RELATIONS = {"left of": (0, 1), "right of": (0, -1), "above": (1, 1), "below": (1, -1)}
"""Axis (0 = x, 1 = y), and the sign of the position of the reference relative to the subject along the axis."""

PLACES = {"leftmost": (0, -1), "rightmost": (0, 1), "topmost": (1, -1), "bottommost": (1, 1)}
"""Axis (0 = x, 1 = y), and the direction along the axis."""

SIDES = ("left", "right")
"""The two images of a statement."""
