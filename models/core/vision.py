"""The vision encoder, with a backbone from timm or Hugging Face. Images, regions and videos are represented by the mean of their
patch states after the last norm (section 3.2 of the paper)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from batches.images import Grid, NativeImages, Pixels, raw_pixels, real_patches
from models.config import VideoConfig, VisionConfig
from models.core.backbones import build_backbone, pixel_statistics
from models.core.backbones.positions import padded_sincos_positions, sincos_positions
from models.core.feature_cache import FeatureCache
from models.core.packing import select_rows
from optim.setup import stay_in_evaluation_mode
from utils.errors import UserError
from utils.image_size import NativeSize

FRAME_POSITIONS = "vision.frame_positions"
"""Name of the parameter that contains a model's frame positions."""


@dataclass(frozen=True)
class Concepts:
    """R visual concepts (section 3.2 of the paper): images, videos, or regions that share the patches of I images.

    Attributes:
        patches: (I, P, D), patch states after the last norm, plus positions for videos and with ``model.vision.patch_positions``.
            If images keep their aspect ratio, zeros follow the patches of smaller images.
        mean: (R, D), the mean of each concept's patches, which represents the concept as [CLS] represents a text.
        patch_mask: (R, P) bool, True = a patch of the concept; None if concept r is the whole image r.
        image_index: (R,) int64, the index of each concept's image; None if concept r is the whole image r.
        grids: the rows and columns of patches of each image, if images keep their aspect ratio; None if all have the same.
    """

    patches: Tensor
    mean: Tensor
    patch_mask: Tensor | None = None
    image_index: Tensor | None = None
    grids: tuple[Grid, ...] | None = None

    @staticmethod
    def whole(patches: Tensor, grids: tuple[Grid, ...] | None = None) -> Concepts:
        """Creates concepts that are whole images or videos, from their patches (I, P, D), of which padding is zero."""
        if grids is None:
            return Concepts(patches, patches.mean(dim=1))
        counts = real_patches(grids, patches.shape[1], patches.device).sum(dim=1, keepdim=True)
        return Concepts(patches, patches.sum(dim=1) / counts, grids=grids)

    @staticmethod
    def of_states(states: Tensor, grids: tuple[Grid, ...] | None = None) -> Concepts:
        """Returns the whole images or videos whose :meth:`states` are ``states`` (I, 1 + P, D)."""
        return Concepts(states[:, 1:], states[:, 0], grids=grids)

    @staticmethod
    def cat(images: Sequence[Concepts]) -> Concepts:
        """Concatenates whole images or videos."""
        grids = tuple(grid for each in images for grid in each.grids or ())
        return Concepts(
            torch.cat([each.patches for each in images]), torch.cat([each.mean for each in images]), grids=grids or None
        )

    def each(self) -> list[Concepts]:
        """Returns each whole image or video separately, without copying."""
        parts = zip(self.patches.split(1), self.mean.split(1), self.grids or [None] * len(self.mean), strict=True)
        return [Concepts(patches, mean, grids=None if grid is None else (grid,)) for patches, mean, grid in parts]

    def real_patches(self) -> Tensor | None:
        """Returns a mask (I, P) bool of the patches that are not padding, or None if no image has padding."""
        if self.grids is None:
            return None
        return real_patches(self.grids, self.patches.shape[1], self.patches.device)

    def states(self) -> Tensor:
        """Returns the states in the published layout (R, 1 + P, D): the ``mean`` of each concept, then a copy of all patches of
        its image."""
        patches = self.patches if self.image_index is None else select_rows(self.patches, self.image_index)
        return torch.cat([self.mean.unsqueeze(1), patches], dim=1)


class VisionEncoder(nn.Module):
    """Encodes pixels as :class:`Concepts`. Within the backbone, patches also attend to the [CLS] token, which is dropped
    afterwards."""

    backbone: nn.Module
    pixel_mean: Tensor
    pixel_std: Tensor
    patch_positions: Tensor | None
    frame_positions: nn.Parameter | None

    def __init__(self, config: VisionConfig):
        super().__init__()
        self.config = config
        self.features: FeatureCache | None = None
        """Cache for the output of the frozen blocks; if None, it is computed in each step."""
        self._frozen_blocks = 0
        self.vision_backbone = backbone = build_backbone(config)
        self.backbone = backbone.module
        self.width, self.patch_size, self.grid = backbone.width, backbone.patch_size, backbone.grid
        if isinstance(config.image_size, NativeSize):
            self.max_patches = config.image_size.max_patches  # part of the model's identity, which no parameter shows
        for name, values in pixel_statistics(config)._asdict().items():
            self.register_buffer(f"pixel_{name}", torch.tensor(values).view(1, 3, 1, 1), persistent=False)
        positions = sincos_positions(*self.grid, self.width) if config.patch_positions else None
        self.register_buffer("patch_positions", positions, persistent=False)
        self.register_parameter("frame_positions", _frame_table(config.video, self.width) if config.video else None)

    def forward(self, pixels: Pixels) -> Concepts:
        """Encodes whole images or videos. ``pixels`` is one of the batches of :meth:`encode`."""
        return self.encode([pixels])[0]

    def encode(self, batches: Sequence[Pixels]) -> list[Concepts]:
        """Encodes several batches of whole images or videos in one pass of the backbone.

        Args:
            batches: images (I, 3, H, W), videos (I, F, 3, H, W), or images that keep their aspect ratio, as uint8 in 0..255 or as
                normalised floats.
        """
        dtypes = {raw_pixels(pixels).dtype for pixels in batches}
        assert len(dtypes) == 1, (
            f"batches of dtypes {dtypes}: uint8 pixels have not been normalised yet, but floats have"
        )
        native = [pixels for pixels in batches if isinstance(pixels, NativeImages)]
        if native:
            assert len(native) == len(batches), "some images keep their aspect ratio, others do not"
            parts = self.patches(NativeImages.cat(native)).split([len(images) for images in native])
            return [Concepts.whole(part, images.grids) for part, images in zip(parts, native, strict=True)]
        fixed = [pixels for pixels in batches if isinstance(pixels, Tensor)]
        frames = self.patches(torch.cat([pixels.flatten(0, -4) for pixels in fixed]))
        batch_patches = frames.split([pixels.shape[:-3].numel() for pixels in fixed])
        return [
            self.video(patches.unflatten(0, pixels.shape[:2])) if pixels.dim() == 5 else Concepts.whole(patches)
            for pixels, patches in zip(fixed, batch_patches, strict=True)
        ]

    def video(self, patches: Tensor) -> Concepts:
        """Combines the patches (I, F, P, D) of frames into videos. The position embedding of a frame is added to its patches.

        By default, patches are averaged over time, and a video has P patches, like an image (as published). The average does not
        depend on the order of the frames. With ``pooling: tokens``, all F * P patches are kept, frame by frame.
        """
        assert self.config.video is not None and self.frame_positions is not None, "model.vision.video is null; set it"
        frames, max_frames = patches.shape[1], self.frame_positions.shape[1]
        assert frames <= max_frames, (
            f"a video has {frames} frames, but model.vision.video.frames is {max_frames}; sample fewer frames"
        )
        patches = patches + self.frame_positions[:, :frames]
        return Concepts.whole(patches.mean(dim=1) if self.config.video.pooling == "mean" else patches.flatten(1, 2))

    def patches(self, pixels: Pixels) -> Tensor:
        """Patch states (I, P, D) of ``pixels`` (I, 3, H, W) after the last norm, in row-major order. With
        ``model.vision.patch_positions``, sine-cosine positions are added to them. If images keep their aspect ratio, the states
        of padding are zero."""
        raw = raw_pixels(pixels)
        normalised = pixels
        if raw.dtype == torch.uint8:
            values = (raw.to(self.pixel_mean.dtype) / 255 - self.pixel_mean) / self.pixel_std
            normalised = replace(pixels, patches=values) if isinstance(pixels, NativeImages) else values
        if self.features is not None and raw.dtype == torch.uint8:
            patches = self.features.patches(pixels, normalised)
        else:
            patches = self.vision_backbone.patches(normalised)
        if self.patch_positions is None:
            return patches
        if self.vision_backbone.native is None:
            return patches + self.patch_positions
        if isinstance(pixels, NativeImages):
            positions = padded_sincos_positions(pixels.grids, patches.shape[1], self.width)
        else:
            positions = sincos_positions(*self.vision_backbone.grid_of(pixels), self.width)
        return patches + positions.to(patches)

    @property
    def blocks_to_shard(self) -> list[nn.Module]:
        """See :class:`optim.setup.EncoderBlocks`."""
        return self.vision_backbone.blocks

    def freeze_blocks(self, count: int) -> None:
        """Permanently freezes everything that runs before block ``count``, counting from 0.

        Raises:
            UserError: if the backbone has no block ``count``.
        """
        blocks = len(self.vision_backbone.blocks)
        if count >= blocks:
            raise UserError(
                f"optim.freeze.vision_blocks is {count}, but the vision encoder has {blocks} blocks",
                remedy=f"set it to at most {blocks - 1}, or set optim.freeze.vision to true",
            )
        self._frozen_blocks = count
        frozen = self.vision_backbone.names_before(count)
        for name, parameter in self.backbone.named_parameters():
            if name in frozen:
                parameter.requires_grad_(False)
        for block in self.vision_backbone.blocks[:count]:
            stay_in_evaluation_mode(block)

    def levels_above(self) -> dict[str, int]:
        """See :class:`optim.setup.HasLevels`. The modules that run before the first block have one level more above them than
        there are blocks."""
        blocks = len(self.vision_backbone.blocks)
        levels = {name: 0 for name, _ in self.named_parameters()}
        for block in reversed(range(blocks + 1)):
            levels |= {f"backbone.{name}": blocks + 1 - block for name in self.vision_backbone.names_before(block)}
        return levels

    def keep_features(self, folder: Path, max_bytes: int) -> None:
        """Starts caching the output of the frozen blocks, or of all blocks if :meth:`freeze_blocks` was not called.

        Args:
            folder: the cache folder.
            max_bytes: maximum size of the folder in bytes.
        """
        self.features = FeatureCache(
            self.vision_backbone,
            self._frozen_blocks or len(self.vision_backbone.blocks),
            pixel_statistics(self.config),
            folder,
            max_bytes,
        )

    def set_gradient_checkpointing(self, enabled: bool) -> None:
        """See :class:`optim.setup.EncoderBlocks`.

        Raises:
            UserError: if the backbone does not support gradient checkpointing.
        """
        self.vision_backbone.set_gradient_checkpointing(enabled)

    def compile_blocks(self, **options: Any) -> None:
        """See :class:`optim.setup.EncoderBlocks`."""
        self.vision_backbone.compile(**options)

    def call_projections(self) -> None:
        """Makes each block call its linear layers, so that adapters on these layers take effect."""
        self.vision_backbone.call_projections()

    def regions(self, images: Concepts, patch_mask: Tensor, image_index: Tensor) -> Concepts:
        """Creates R regions that share the patches of their images, without running the backbone again or copying patches.

        Args:
            images: I whole images.
            patch_mask: (R, P) bool, at least one True per region.
            image_index: (R,) int64, the index of each region's image.
        """
        patches = images.patches
        count, length, width = patches.shape
        patch_weights = patch_mask.to(patches.dtype) / patch_mask.sum(dim=1, keepdim=True)
        # A single matrix product over all patches of the batch avoids copies, and its backward pass adds in a fixed order.
        weights = patch_weights.new_zeros(patch_mask.shape[0], count, length)
        weights.scatter_(1, image_index.view(-1, 1, 1).expand(-1, 1, length), patch_weights.unsqueeze(1))
        with torch.autocast(patches.device.type, enabled=False):  # the weights would be rounded
            mean = weights.view(-1, count * length) @ patches.reshape(count * length, width)
        return Concepts(patches, mean, patch_mask, image_index, images.grids)


def _frame_table(config: VideoConfig, width: int) -> nn.Parameter:
    """Creates the frame positions (1, F, 1, D). The shape is as published, and so is the initialisation if ``pooling`` is
    ``mean``.

    With ``pooling: tokens``, the fusion encoder has to distinguish frames, so the table is initialised with sine-cosine positions
    at the scale of the patches. With random values at a scale of 0.02, the fusion encoder would ignore the positions for hundreds
    of steps.
    """
    if config.pooling == "tokens":
        return nn.Parameter(sincos_positions(config.frames, 1, width).view(1, config.frames, 1, width))
    return nn.Parameter(nn.init.trunc_normal_(torch.empty(1, config.frames, 1, width), std=0.02))
