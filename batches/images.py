"""Images that keep their aspect ratio, as patches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import default_collate

from utils.image_size import ImageSize, NativeSize

Grid = tuple[int, int]
"""Rows and columns of patches."""


@dataclass(frozen=True)
class NativeImages:
    """I images with different grids of patches.

    Attributes:
        patches: (I, P, 3, p, p) uint8 or normalised float: the patches of each image in row-major order, then padding with zeros.
        grids: the rows and columns of patches of each image. They stay on the host, which decides what runs.
    """

    patches: Tensor
    grids: tuple[Grid, ...]

    @staticmethod
    def of(images: Sequence[Tensor], size: NativeSize) -> NativeImages:
        """Cuts images, (3, h, w) with sides that are multiples of the patch size, into patches. All are padded to
        ``size.max_patches``, so that shapes are the same in every batch."""
        side = size.patch_size
        grids = tuple((image.shape[1] // side, image.shape[2] // side) for image in images)
        patches = images[0].new_zeros(len(images), size.max_patches, 3, side, side)
        for row, image, (rows, columns) in zip(patches, images, grids, strict=True):
            cells = image.view(3, rows, side, columns, side).permute(1, 3, 0, 2, 4)
            row[: rows * columns].view(cells.shape).copy_(cells)
        return NativeImages(patches, grids)

    @staticmethod
    def cat(batches: Sequence[NativeImages]) -> NativeImages:
        """Concatenates batches of images."""
        return NativeImages(
            torch.cat([batch.patches for batch in batches]), tuple(grid for batch in batches for grid in batch.grids)
        )

    def __len__(self) -> int:
        return len(self.grids)

    @property
    def device(self) -> torch.device:
        """Device of the patches."""
        return self.patches.device

    def to(self, device: torch.device) -> NativeImages:
        """Returns a copy on ``device``."""
        return NativeImages(self.patches.to(device), self.grids)

    def select(self, rows: Sequence[int]) -> NativeImages:
        """Returns the images with the indices ``rows``, in that order."""
        chosen = torch.tensor(rows, device=self.patches.device)
        return NativeImages(self.patches.index_select(0, chosen), tuple(self.grids[row] for row in rows))

    def rasters(self, grid: Grid) -> Tensor:
        """Returns the images as (I, 3, h, w), if all of them have the same ``grid``."""
        (rows, columns), side = grid, self.patches.shape[-1]
        cells = self.patches[:, : rows * columns].unflatten(1, grid).permute(0, 3, 1, 4, 2, 5)
        return cells.reshape(len(self), 3, rows * side, columns * side)

    def each_raster(self) -> list[Tensor]:
        """Returns each image as (1, 3, h, w)."""
        return [self.select([row]).rasters(grid) for row, grid in enumerate(self.grids)]

    def mask(self) -> Tensor:
        """Returns which of the patches belong to the images, (I, P) bool."""
        return real_patches(self.grids, self.patches.shape[1], self.patches.device)


Pixels = Tensor | NativeImages
"""Images (I, 3, H, W), videos (I, F, 3, H, W), or images that keep their aspect ratio."""


def real_patches(grids: Sequence[Grid], length: int, device: torch.device) -> Tensor:
    """Returns a mask (I, ``length``) bool of the patches that belong to images with the given ``grids``. The rest is padding."""
    counts = torch.tensor([rows * columns for rows, columns in grids], device=device)
    return torch.arange(length, device=device) < counts.unsqueeze(1)


def raw_pixels(images: Pixels) -> Tensor:
    """Returns the tensor that contains the pixels; its first axis is the image or video."""
    return images.patches if isinstance(images, NativeImages) else images


def select_images(images: Pixels, rows: Sequence[int]) -> Pixels:
    """Returns the images or videos with the indices ``rows``, in that order."""
    return images.select(rows) if isinstance(images, NativeImages) else images[list(rows)]


def stack_views(views: Sequence[Tensor], size: ImageSize) -> Pixels:
    """Combines the views of images or videos into a batch. A worker process writes views of the same size directly to the memory
    that it shares with the training process; ``torch.stack`` would need one more copy.

    Args:
        views: the view of each image (3, H, W) or video (F, 3, H, W).
        size: size of the model's input.
    """
    if isinstance(size, NativeSize):
        return NativeImages.of(views, size)
    stacked: Tensor = default_collate(list(views))
    return stacked
