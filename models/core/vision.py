"""The vision encoder, a timm backbone. Images, regions and videos are means of its normed patches (section 3.2)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from pydantic import Field
from torch import Tensor, nn

from models.core.blocks import MAX_BLOCKS, MAX_HEADS, MAX_WIDTH, heads_error
from models.core.feature_cache import FeatureCache, is_before_block
from optim.setup import stay_in_evaluation_mode
from utils.config import Config
from utils.errors import UserError
from utils.image_size import ImageSize, grid_of, sides_of

PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)
"""CLIP's statistics. The published models use them for every backbone, including BEiT-2."""


FRAME_POSITIONS = "vision.frame_positions"
"""Name of the parameter that holds a model's frame positions."""


@dataclass(frozen=True)
class Concepts:
    """R visual concepts (section 3.2): images, videos, or regions that share the patches of I images.

    Attributes:
        patches: (I, P, D) normed patch states.
        mean: (R, D) mean of each concept's patches, which represents the concept as [CLS] represents a text.
        patch_mask: (R, P) bool, True = a patch of the concept; None if concept r is the whole image r.
        image_index: (R,) int64, the image of each concept; None if concept r is the whole image r.
    """

    patches: Tensor
    mean: Tensor
    patch_mask: Tensor | None = None
    image_index: Tensor | None = None

    @staticmethod
    def whole(patches: Tensor) -> Concepts:
        """Whole images or videos from their patches (I, P, D)."""
        return Concepts(patches, patches.mean(dim=1))

    def tokens(self) -> Tensor:
        """The published layout (R, 1 + P, D): the ``mean`` of a concept, then a copy of all patches of its image."""
        patches = self.patches if self.image_index is None else self.patches.index_select(0, self.image_index)
        return torch.cat([self.mean.unsqueeze(1), patches], dim=1)


class VideoConfig(Config):
    """Frames of a video and their pooling."""

    frames: int = Field(ge=1, description="number of frames that are taken from a video")
    pooling: Literal["mean", "tokens"] = Field(
        "mean",
        description="mean: mean of the frames' patches over time (published), which forgets their order; tokens: the fusion "
        "attends to the patches of every frame",
    )


class VisionConfig(Config):
    """A timm ViT by name; null sizes are the backbone's."""

    backbone: str = Field("beitv2_base_patch16_224", description="name of a timm ViT (`timm.list_models()`)")
    image_size: ImageSize = Field(
        224, description="side of the square input in pixels; or [height, width], for images that share another aspect"
    )
    patch_size: int | None = Field(None, ge=1, description="side of a patch, pixels; null: the backbone's")
    stem: Literal["linear", "convolutions"] = Field(
        "linear",
        description="what turns the pixels of a patch into a state. linear: one linear layer, as in every ViT; convolutions: "
        "small convolutions, with which a small model from scratch learns shapes within hundreds of steps",
    )
    width: int | None = Field(None, ge=1, le=MAX_WIDTH, description="width of the states; null: the backbone's")
    depth: int | None = Field(None, ge=1, le=MAX_BLOCKS, description="number of blocks; null: the backbone's")
    heads: int | None = Field(None, ge=1, le=MAX_HEADS, description="attention heads; null: the backbone's")
    drop_path: float = Field(0.1, ge=0, lt=1, description="drop rate of the last block, rising linearly from 0")
    layer_scale: float | None = Field(
        0.1, description="initial LayerScale; the published BEiT-2 models use 0.1; null: none"
    )
    positions: Literal["backbone", "sincos"] = Field(
        "backbone",
        description="backbone: positions as the backbone has them; sincos: absolute ones, which start as "
        "two-dimensional sines and cosines and are trained: a small model from scratch does not learn boxes without them",
    )
    patch_positions: bool = Field(
        False,
        description="add fixed sine-cosine positions to the output of the last block: a small model from scratch "
        "learns boxes sooner, as its blocks need not carry positions to the end",
    )
    video: VideoConfig | None = Field(None, description="frames of videos; null: the model has images alone")


class VisionEncoder(nn.Module):
    """Encodes pixels as :class:`Concepts`. Within the backbone, patches attend to its [CLS] token, which is dropped
    afterwards."""

    backbone: Any  # timm's ViTs share attributes, not a base class
    pixel_mean: Tensor
    pixel_std: Tensor
    patch_positions: Tensor | None
    frame_positions: nn.Parameter | None

    def __init__(self, config: VisionConfig):
        super().__init__()
        self.config = config
        self.features: FeatureCache | None = None
        """Cache for the states of frozen blocks; if None, they are computed in each step."""
        self._frozen_blocks = 0
        self.backbone = _create_backbone(config)
        self.width: int = self.backbone.num_features
        self.patch_size: int = self.backbone.patch_embed.patch_size[0]
        self.grid: tuple[int, int] = tuple(self.backbone.patch_embed.grid_size)
        self.register_buffer("pixel_mean", torch.tensor(PIXEL_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(PIXEL_STD).view(1, 3, 1, 1), persistent=False)
        positions = sincos_positions(*self.grid, self.width) if config.patch_positions else None
        self.register_buffer("patch_positions", positions, persistent=False)
        self.register_parameter("frame_positions", _frame_table(config.video, self.width) if config.video else None)

    def forward(self, pixels: Tensor) -> Concepts:
        """Encode whole images or videos; ``pixels`` as in :meth:`encode`."""
        return self.encode([pixels])[0]

    def encode(self, batches: Sequence[Tensor]) -> list[Concepts]:
        """Encode several batches of whole images or videos in one pass of the backbone.

        Args:
            batches: images (I, 3, H, W) or videos (I, F, 3, H, W), uint8 in 0..255 or float already normalised.
        """
        dtypes = {pixels.dtype for pixels in batches}
        assert len(dtypes) == 1, f"batches of dtypes {dtypes}: uint8 pixels are not normalised yet, floats are"
        frames = self.patches(torch.cat([pixels.flatten(0, -4) for pixels in batches]))
        batch_patches = frames.split([pixels.shape[:-3].numel() for pixels in batches])
        return [
            self.video(patches.unflatten(0, pixels.shape[:2])) if pixels.dim() == 5 else Concepts.whole(patches)
            for pixels, patches in zip(batches, batch_patches, strict=True)
        ]

    def video(self, patches: Tensor) -> Concepts:
        """Combine the patches (I, F, P, D) of frames into videos. The position embedding of a frame is added to its patches.

        By default, patches are averaged over time, and a video has P patches, like an image (as published). The average is the
        same for every order of the frames. With ``pooling: tokens`` all F * P patches are kept, frame by frame.
        """
        assert self.config.video is not None and self.frame_positions is not None, "model.vision.video is null; set it"
        frames, max_frames = patches.shape[1], self.frame_positions.shape[1]
        assert frames <= max_frames, (
            f"a video has {frames} frames, but model.vision.video.frames is {max_frames}; sample fewer frames"
        )
        patches = patches + self.frame_positions[:, :frames]
        return Concepts.whole(patches.mean(dim=1) if self.config.video.pooling == "mean" else patches.flatten(1, 2))

    def patches(self, pixels: Tensor) -> Tensor:
        """Normed patch states (I, P, D) of ``pixels`` (I, 3, H, W), row-major.

        Patches are normed before they are averaged, whereas timm norms the average.
        """
        stored = pixels
        if pixels.dtype == torch.uint8:
            pixels = (pixels.to(self.pixel_mean.dtype) / 255 - self.pixel_mean) / self.pixel_std
        if self.features is not None and stored.dtype == torch.uint8:
            tokens = self.features.states(stored, pixels)
        else:
            tokens = self.backbone.forward_features(pixels)
        tokens = tokens[:, self.backbone.num_prefix_tokens :]
        patches = self.backbone.fc_norm(tokens)
        return patches if self.patch_positions is None else patches + self.patch_positions

    def freeze_blocks(self, count: int) -> None:
        """Permanently freeze everything before block ``count``.

        Raises:
            UserError: if the backbone has no block ``count``.
        """
        blocks = len(self.backbone.blocks)
        if count >= blocks:
            raise UserError(
                f"optim.freeze.vision_blocks is {count}, but the vision encoder has {blocks} blocks; "
                f"give at most {blocks - 1}, or set optim.freeze.vision to true"
            )
        self._frozen_blocks = count
        for name, parameter in self.backbone.named_parameters():
            if is_before_block(name, count):
                parameter.requires_grad_(False)
        for block in self.backbone.blocks[:count]:
            stay_in_evaluation_mode(block)

    def keep_features(self, folder: Path, bound: int) -> None:
        """Cache the output of the frozen blocks, or of all blocks if :meth:`freeze_blocks` was not called, in ``folder``.

        The folder holds at most ``bound`` bytes.
        """
        self.features = FeatureCache(self.backbone, self._frozen_blocks or len(self.backbone.blocks), folder, bound)

    def set_gradient_checkpointing(self, enabled: bool) -> None:
        """See :class:`optim.setup.EncoderBlocks`.

        Raises:
            UserError: if timm's backbone does not support it.
        """
        try:
            self.backbone.set_grad_checkpointing(enabled)
        except (AssertionError, AttributeError):
            if enabled:
                name = self.config.backbone
                raise UserError(
                    f"train.recompute: {name!r} does not support gradient checkpointing; remove `vision`"
                ) from None

    def compile_blocks(self, **options: Any) -> None:
        """See :class:`optim.setup.EncoderBlocks`. Only ``forward_features`` of the backbone is called, so only it is compiled."""
        self.backbone.forward_features = torch.compile(self.backbone.forward_features, **options)

    def call_projections(self) -> None:
        """Make each block call its linear layers, so that adapters on these layers take effect. By default, timm's BEiT and EVA
        only read the weight of one layer without calling it."""
        for module in self.backbone.modules():
            if getattr(module, "qkv_bias_separate", None) is False:
                module.qkv_bias_separate = True

    def regions(self, images: Concepts, patch_mask: Tensor, image_index: Tensor) -> Concepts:
        """Build R regions that share the patches of their images, without running the backbone again or copying patches.

        Args:
            images: I whole images.
            patch_mask: (R, P) bool, at least one True per region.
            image_index: (R,) int64, the image of each region.
        """
        patches = images.patches
        count, length, width = patches.shape
        share = patch_mask.to(patches.dtype) / patch_mask.sum(dim=1, keepdim=True)
        # One matrix product over all patches of the batch copies nothing, and its backward pass adds in a fixed order.
        weights = share.new_zeros(patch_mask.shape[0], count, length)
        weights.scatter_(1, image_index.view(-1, 1, 1).expand(-1, 1, length), share.unsqueeze(1))
        with torch.autocast(patches.device.type, enabled=False):
            mean = weights.view(-1, count * length) @ patches.reshape(count * length, width)
        return Concepts(patches, mean, patch_mask, image_index)


class ConvolutionalStem(nn.Sequential):
    """Convolutions with strides of 2 or 3 that turn each patch into a state, in place of one linear layer.

    They see edges and corners wherever these are in a patch. The linear layer sees each position of a pixel on its own, and a
    small model that is trained from scratch then needs thousands of steps to tell shapes apart. After Xiao et al.
    (arXiv:2106.14881), but with GroupNorm: BatchNorm would make the states of an image depend on the others of its batch.
    """

    def __init__(self, grid: tuple[int, int], patch_size: int, width: int):
        """``grid``: rows and columns of patches. ``width``: of the states; the channels double with each stride, up to ``width``.

        Raises:
            UserError: if ``patch_size`` is not a product of twos and threes.
        """
        strides = _strides(patch_size)
        layers: list[nn.Module] = []
        channels = 3
        for index, stride in enumerate(strides):
            following = max(8, width >> (len(strides) - 1 - index))
            # A window reaches one pixel beyond its patch on each side, so that the middles of both are the same.
            convolution = nn.Conv2d(channels, following, kernel_size=stride + 2, stride=stride, padding=1)
            layers += [convolution, nn.GroupNorm(1, following), nn.GELU()]
            channels = following
        super().__init__(*layers, nn.Conv2d(channels, width, 1))
        # The attributes of timm's patch embeddings that we use.
        self.patch_size = (patch_size, patch_size)
        self.grid_size = grid

    def forward(self, pixels: Tensor) -> Tensor:
        """States (I, P, D) of the patches of ``pixels`` (I, 3, H, W), row-major."""
        states: Tensor = super().forward(pixels)
        return states.flatten(2).transpose(1, 2)


def _strides(patch_size: int) -> list[int]:
    """The strides of the convolutions of a stem: the prime factors of the side of a patch.

    Raises:
        UserError: if there are others than 2 and 3.
    """
    strides, rest = [], patch_size
    for stride in (2, 3):
        while rest % stride == 0:
            strides.append(stride)
            rest //= stride
    if rest > 1:
        fits = [2**twos * 3**threes for twos in range(10) for threes in range(6)]
        near = [max(side for side in fits if side < patch_size), min(side for side in fits if side > patch_size)]
        raise UserError(
            f"model.vision.patch_size: {patch_size} is not a product of twos and threes, which `stem: convolutions` needs; "
            f"use {near[0]} or {near[1]}, or `stem: linear`"
        )
    return strides


def _frame_table(config: VideoConfig, width: int) -> nn.Parameter:
    """Frame positions (1, F, 1, D). The shape is as published; so is the initialisation with ``pooling: mean``.

    With ``pooling: tokens`` the fusion encoder has to distinguish frames, so the table starts with sine-cosine positions at the
    scale of the patches. At a scale of 0.02 the fusion encoder would not notice them for hundreds of steps.
    """
    if config.pooling == "tokens":
        return nn.Parameter(sincos_positions(config.frames, 1, width).view(1, config.frames, 1, width))
    return nn.Parameter(nn.init.trunc_normal_(torch.empty(1, config.frames, 1, width), std=0.02))


def _check_sizes(image_size: ImageSize, patch_size: int | None, width: int | None, heads: int | None) -> None:
    """Check the sizes of a config or of a backbone. None means the backbone's size, which is not known yet.

    Not every timm backbone rejects sizes that do not divide each other.

    Raises:
        UserError: if ``patch_size`` does not divide ``image_size``, or ``heads`` does not divide ``width``.
    """
    for side in sides_of(image_size):
        if patch_size is not None and side % patch_size:
            below = side - side % patch_size
            sizes = " or ".join(str(size) for size in (below, below + patch_size) if size)
            raise UserError(
                f"model.vision: image_size {side} is not a multiple of patch_size {patch_size}; {sizes} would do"
            )
    error = None if width is None or heads is None else heads_error(width, heads)
    if error:
        raise UserError(f"model.vision: {error}")


def _create_backbone(config: VisionConfig) -> Any:
    _check_sizes(config.image_size, config.patch_size, config.width, config.heads)
    options: dict[str, Any] = {
        "patch_size": config.patch_size,
        "embed_dim": config.width,
        "depth": config.depth,
        "num_heads": config.heads,
        # Some of timm's backbones have LayerScale by default; 0 turns it off.
        "init_values": config.layer_scale or 0.0,
    }
    options = {name: value for name, value in options.items() if value is not None}
    if config.positions == "sincos" and config.backbone.startswith("beit"):
        options["use_abs_pos_emb"] = True
    try:
        backbone: Any = timm.create_model(
            config.backbone,
            pretrained=False,
            num_classes=0,
            img_size=config.image_size,
            drop_path_rate=config.drop_path,
            **options,
        )
    except (RuntimeError, TypeError, AssertionError, ValueError) as error:
        reason = str(error).split("\n")[0]
        raise UserError(
            f"model.vision.backbone: timm cannot build {config.backbone!r} with {options}: {reason}"
        ) from None
    attributes = ("forward_features", "patch_embed", "num_prefix_tokens", "fc_norm", "num_features", "blocks")
    missing = [name for name in attributes if not hasattr(backbone, name)]
    if missing:
        raise UserError(
            f"model.vision.backbone: {config.backbone!r} is not a ViT: it has no {', '.join(missing)}; choose a ViT"
        )
    _check_sizes(config.image_size, backbone.patch_embed.patch_size[0], backbone.num_features, _heads_of(backbone))
    if config.stem == "convolutions":
        patch_size = backbone.patch_embed.patch_size[0]
        grid = grid_of(config.image_size, patch_size)
        backbone.patch_embed = ConvolutionalStem(grid, patch_size, backbone.num_features)
    if getattr(backbone, "attn_pool", None) is not None:
        backbone.attn_pool = None  # unused, and DDP waits for the gradient of every parameter
    if config.positions == "sincos":
        _set_sincos_positions(backbone, config.backbone)
    return backbone


def _heads_of(backbone: Any) -> int | None:
    """Number of heads per block; None if the backbone has no such attribute."""
    heads: int | None = getattr(getattr(backbone.blocks[0], "attn", None), "num_heads", None)
    return heads


def _set_sincos_positions(backbone: Any, name: str) -> None:
    table = getattr(backbone, "pos_embed", None)
    if table is None:
        raise UserError(f"model.vision.positions: {name!r} has no absolute positions; set it to `backbone`")
    rows, columns = backbone.patch_embed.grid_size
    positions = sincos_positions(rows, columns, table.shape[-1])
    with torch.no_grad():
        table.zero_()
        table[:, table.shape[1] - rows * columns :] = positions.to(table)


def sincos_positions(rows: int, columns: int, width: int) -> Tensor:
    """Two-dimensional sine-cosine positions (rows * columns, width) in [-1, 1]; half the channels encode y, half x.

    Raises:
        UserError: if ``width`` is not a multiple of 4.
    """
    if width % 4:
        raise UserError(
            f"model.vision.width is {width}, but sincos positions need a multiple of 4; use {width + -width % 4}"
        )
    frequencies = torch.exp(-math.log(10000.0) * torch.arange(width // 4) / (width // 4))
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    angles = [axis.reshape(-1, 1) * frequencies for axis in (y, x)]
    return torch.cat([function(angle) for angle in angles for function in (torch.sin, torch.cos)], dim=1)
