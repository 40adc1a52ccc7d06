"""A disk cache for the output of the vision encoder's frozen blocks, so that it is computed once per image.

As long as the first blocks are frozen, their output depends only on the pixels of an image and on the frozen part of the
backbone. The cache is therefore keyed by a hash of the pixels and of everything that this part computes with, and can be shared
by epochs and runs. Two crops of an image have different keys.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from batches.images import NativeImages, Pixels, raw_pixels, select_images
from models.core.backbones.base import PixelStatistics, VisionBackbone
from utils.block_cache import BlockCache
from utils.errors import UserError
from utils.weight_file import identity

REMEDY = "set optim.freeze.cache.folder to a different folder"
TOLERANCE = 1e-4
"""Maximum difference between states with and without the cache, relative to the largest absolute value."""


class FeatureCache:
    """Caches the states of images after the first ``blocks`` blocks of ``backbone``.

    Args:
        backbone: the backbone, whose first blocks are frozen and in evaluation mode.
        blocks: number of frozen blocks, at least one.
        statistics: the statistics with which images are normalised for the backbone.
        folder: cache folder, which several processes and runs may share.
        max_bytes: maximum size of the folder in bytes; least recently used states are evicted first.

    Raises:
        UserError: on the first call, if the backbone's blocks cannot be run separately, or if ``max_bytes`` is too small for the
            states of an image.
    """

    def __init__(
        self, backbone: VisionBackbone, blocks: int, statistics: PixelStatistics, folder: Path, max_bytes: int
    ):
        self.backbone, self.blocks, self.statistics, self.max_bytes = backbone, blocks, statistics, max_bytes
        self.cache = BlockCache(folder, max_bytes, REMEDY)
        self._name: str | None = None
        """Identifies the frozen part of the backbone in each key; None before the first call."""

    def patches(self, pixels: Pixels, normalised: Pixels) -> Tensor:
        """Returns the backbone's output for images: patch states (N, P, D) after the last norm.

        Args:
            pixels: N images as uint8; the cache keys are computed from these pixels.
            normalised: the same images as float, normalised for the backbone.
        """
        if self._name is None:
            self._name = self._check(normalised)
        raw, floats = raw_pixels(pixels), raw_pixels(normalised)
        autocast = torch.get_autocast_dtype(raw.device.type) if torch.is_autocast_enabled(raw.device.type) else ""
        grids = pixels.grids if isinstance(pixels, NativeImages) else [None] * len(raw)
        names = [
            self._key(image, f"{autocast}" if grid is None else f"{autocast} {grid}")
            for image, grid in zip(raw.cpu().numpy(), grids, strict=True)
        ]
        cached = [self.cache.read(name, self._bytes) for name in names]
        missing = [index for index, content in enumerate(cached) if content is None]
        states = floats.new_empty(len(names), *self._shape)
        for index, content in enumerate(cached):
            if content is not None:
                state = np.frombuffer(content, np.float32).reshape(self._shape)
                states[index] = torch.from_numpy(state.copy()).to(states)  # torch does not accept read-only memory
        if missing:
            fresh = self._first_blocks(select_images(normalised, missing)).float()
            states[missing] = fresh.to(states)
            for index, state in zip(missing, fresh.cpu().numpy(), strict=True):
                self.cache.ensure(names[index], self._bytes, state.tobytes)
        return self.backbone.patches_after_block(normalised, self.blocks - 1, states)

    def _key(self, image: np.ndarray, settings: str) -> str:
        return hashlib.sha256(f"{self._name} {settings} {image.shape}\n".encode() + image.tobytes()).hexdigest()

    @torch.no_grad()
    def _first_blocks(self, normalised: Pixels) -> Tensor:
        """States (I, prefix + P, D) after the frozen blocks, or feature maps for a convolutional model."""
        return self.backbone.output_of_block(normalised, self.blocks - 1)

    @torch.no_grad()
    def _check(self, normalised: Pixels) -> str:
        """Checks that running the frozen blocks and the other blocks separately gives the same states as running the whole
        backbone, and that the states of an image fit into the cache. Returns what identifies the frozen part."""
        image = select_images(normalised, [0])
        with _evaluating(self.backbone.module):
            first = self._first_blocks(image)
            whole = self.backbone.patches(image)
            separate = self.backbone.patches_after_block(image, self.blocks - 1, first)
        if not (separate - whole).abs().max() <= TOLERANCE * whole.abs().max():
            raise UserError(
                "the blocks of this backbone have inputs other than the previous states",
                where="optim.freeze.cache",
                remedy="remove this setting",
            )
        self._shape = tuple(first.shape[1:])
        self._bytes = 4 * first[0].numel()
        if self.max_bytes < (min_bytes := BlockCache.min_bound(self._bytes)):
            raise UserError(
                f"optim.freeze.cache.gigabytes is {self.max_bytes / 1000000000.0:g}, which is too small to cache any "
                "states",
                remedy=f"set it to {math.ceil(min_bytes / 1000000.0) / 1000.0:g} or more",
            )
        module = self.backbone.module
        after = {name for name, _ in module.named_parameters()} - self.backbone.names_before(self.blocks)
        versions = [version(library) for library in ("torch", "timm", "transformers")]
        return f"{identity(module, after)} {self.statistics} {raw_pixels(normalised).dtype} {versions}"


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """A context in which the module and all its submodules are in evaluation mode."""
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True
