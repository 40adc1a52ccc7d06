"""The size of a model's input images: a square, or a fixed height and width."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator


def _checked(size: Any) -> Any:
    """Validates a size. Reports a single error, whereas pydantic would report one error for each type of the union."""
    sides = size if isinstance(size, list | tuple) and len(size) == 2 else [size]
    if all(isinstance(side, int) and not isinstance(side, bool) and side >= 1 for side in sides):
        return size
    raise ValueError("use the side of a square in pixels, or [height, width]")


ImageSize = Annotated[int | tuple[int, int], BeforeValidator(_checked)]
"""Size in pixels: the side of a square, or (height, width)."""


def sides_of(size: ImageSize) -> tuple[int, int]:
    """Returns the height and width in pixels."""
    return (size, size) if isinstance(size, int) else size


def grid_of(size: ImageSize, patch_size: int) -> tuple[int, int]:
    """Returns the number of rows and columns of patches."""
    height, width = sides_of(size)
    return height // patch_size, width // patch_size


def in_words(size: ImageSize) -> str:
    """Formats a size, for example as "224 px", or as "64 x 96 px" if height and width differ."""
    height, width = sides_of(size)
    return f"{height} px" if height == width else f"{height} x {width} px"
