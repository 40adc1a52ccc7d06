"""The size of a model's input images: a square, a fixed height and width, or a number of patches for images of any shape."""

from __future__ import annotations

from functools import lru_cache
from math import ceil, floor
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from utils.config import Config
from utils.errors import UserError


class NativeSize(Config):
    """A budget of patches for images that keep their aspect ratio, as in NaFlex (SigLIP 2, arXiv:2502.14786). Each image is
    resized to the largest grid of whole patches that fits into the budget."""

    max_patches: int = Field(ge=1, description="maximum number of patches of an image")
    patch_size: int = Field(
        ge=1, description="side of a patch in pixels, which must equal the patch size of the backbone"
    )

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Returns the rows and columns of patches for an image of ``height`` x ``width`` pixels: its largest grid of at most
        ``max_patches`` patches.

        The grids of an image are its height and width at any scale, rounded to whole patches. A side therefore differs by at most
        half a patch from the exact aspect ratio. Only images that are longer than ``max_patches`` times their other side are
        compressed further.
        """
        return _largest_grid(height, width, self.max_patches)


def _checked(size: Any) -> Any:
    """Validates a size. Reports a single error, whereas pydantic would report one error for each type of the union."""
    if isinstance(size, NativeSize):
        return size
    is_native = isinstance(size, dict) and size.keys() == NativeSize.model_fields.keys()
    is_pair = isinstance(size, list | tuple) and len(size) == 2
    numbers = list(size.values()) if is_native else size if is_pair else [size]
    if all(isinstance(number, int) and not isinstance(number, bool) and number >= 1 for number in numbers):
        return NativeSize(**size) if is_native else size
    raise ValueError("use the side of a square in pixels, [height, width], or {max_patches: 196, patch_size: 16}")


ImageSize = Annotated[int | tuple[int, int] | NativeSize, BeforeValidator(_checked)]
"""The side of a square in pixels, (height, width), or a budget of patches for images that keep their aspect ratio."""


def sides_of(size: ImageSize) -> tuple[int, int]:
    """Returns the height and width in pixels.

    Raises:
        UserError: if images keep their aspect ratio, so that images have different heights and widths.
    """
    if isinstance(size, NativeSize):
        raise UserError(
            "this needs images of one height and width, but images keep their aspect ratio",
            where="model.vision.image_size",
            remedy="use a model with a fixed image size",
        )
    return (size, size) if isinstance(size, int) else size


def sides_for(size: ImageSize, height: int, width: int) -> tuple[int, int]:
    """Returns the height and width to which an image of ``height`` x ``width`` pixels is resized."""
    if isinstance(size, NativeSize):
        rows, columns = size.grid(height, width)
        return rows * size.patch_size, columns * size.patch_size
    return sides_of(size)


def grid_of(size: ImageSize, patch_size: int) -> tuple[int, int]:
    """Returns the number of rows and columns of patches; for images of any shape, the grid of a square image."""
    if isinstance(size, NativeSize):
        return size.grid(1, 1)
    height, width = sides_of(size)
    return height // patch_size, width // patch_size


def in_words(size: ImageSize) -> str:
    """Formats a size, for example as "224 px", as "64 x 96 px" if height and width differ, or as "up to 196 patches of 16 px"."""
    if isinstance(size, NativeSize):
        return f"up to {size.max_patches} patches of {size.patch_size} px"
    height, width = sides_of(size)
    return f"{height} px" if height == width else f"{height} x {width} px"


@lru_cache(maxsize=65536)
def _largest_grid(height: int, width: int, max_patches: int) -> tuple[int, int]:
    """See :meth:`NativeSize.grid`."""
    grids = []
    for rows in range(1, max_patches + 1):
        # Scales at which the height rounds to this number of rows give these numbers of columns.
        least = max(1, floor((rows - 0.5) * width / height - 0.5) + 1)
        most = max(1, ceil((rows + 0.5) * width / height + 0.5) - 1)
        if rows * least <= max_patches:
            grids.append((rows, min(most, max_patches // rows)))
    if not grids:
        return 1, max_patches
    # Of equally large grids, the one with the least distortion.
    return max(grids, key=lambda grid: (grid[0] * grid[1], -abs(grid[0] * width - grid[1] * height)))
