"""The config of the vision encoder."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from models.core.blocks import MAX_BLOCKS, MAX_HEADS, MAX_WIDTH
from utils.config import Config
from utils.hub import TIMM
from utils.image_size import ImageSize


class VideoConfig(Config):
    """The number of frames of a video, and how they are pooled."""

    frames: int = Field(ge=1, description="number of frames sampled from a video")
    pooling: Literal["mean", "tokens"] = Field(
        "mean",
        description="how frames are combined. mean: average the patches over time (as published), which loses the "
        "order of frames; tokens: the fusion encoder attends to the patches of all frames",
    )


PUBLISHED_PIXELS = {
    "pixel_mean": (0.48145466, 0.4578275, 0.40821073),
    "pixel_std": (0.26862954, 0.26130258, 0.27577711),
}
"""CLIP's statistics. The published models use them for every backbone, including BEiT-2."""


def _without_timm(name: object) -> object:
    """Removes the prefix ``timm:``, which occurs in names of weights but not in names of models."""
    return name.removeprefix(TIMM) if isinstance(name, str) else name


class VisionConfig(Config):
    """The vision encoder. Sizes that are null are taken from the backbone."""

    previous_defaults = PUBLISHED_PIXELS

    backbone: Annotated[str, BeforeValidator(_without_timm)] = Field(
        "beitv2_base_patch16_224",
        description="a timm model (`timm.list_models()`), with or without the prefix timm:, or hf: followed by the "
        "name or folder of a Hugging Face model, such as hf:facebook/dinov2-base",
    )
    image_size: ImageSize = Field(
        224, description="side of the square input in pixels, or [height, width] for an input that is not square"
    )
    patch_size: int | None = Field(None, ge=1, description="side of a patch in pixels; null: as in the backbone")
    stem: Literal["linear", "convolutions"] = Field(
        "linear",
        description="how the pixels of a patch are embedded. linear: a linear layer, as in other ViTs; convolutions: "
        "a small convolutional network, with which a small model trained from scratch learns shapes within hundreds "
        "of steps",
    )
    width: int | None = Field(None, ge=1, le=MAX_WIDTH, description="width of the states; null: as in the backbone")
    depth: int | None = Field(None, ge=1, le=MAX_BLOCKS, description="number of blocks; null: as in the backbone")
    heads: int | None = Field(
        None, ge=1, le=MAX_HEADS, description="number of attention heads; null: as in the backbone"
    )
    drop_path: float = Field(
        0.1, ge=0, lt=1, description="drop path rate of the last block, rising linearly from 0 in the first block"
    )
    layer_scale: float | Literal["backbone"] | None = Field(
        "backbone",
        description="initial value of LayerScale. backbone: as in the backbone; null: no LayerScale; the published "
        "BEiT-2 models use 0.1",
    )
    pixel_mean: tuple[float, float, float] | None = Field(
        None,
        description="means of red, green and blue, between 0 and 1, used to normalise pixels; null: as in the "
        "backbone; the published models use CLIP's values with every backbone",
    )
    pixel_std: tuple[float, float, float] | None = Field(
        None,
        description="standard deviations of red, green and blue; set together with pixel_mean; null: as in the "
        "backbone",
    )
    positions: Literal["backbone", "sincos"] = Field(
        "backbone",
        description="position embeddings. backbone: as in the backbone; sincos: trained absolute positions that are "
        "initialised with two-dimensional sines and cosines, without which a small model trained from scratch does "
        "not learn boxes",
    )
    patch_positions: bool = Field(
        False,
        description="add fixed sine-cosine positions to the output of the last block; a small model trained from "
        "scratch learns boxes sooner, because its blocks do not have to preserve positions",
    )
    video: VideoConfig | None = Field(None, description="settings for videos; null: the model takes only images")

    @model_validator(mode="after")
    def _both_statistics_or_none(self) -> VisionConfig:
        if (self.pixel_mean is None) != (self.pixel_std is None):
            raise ValueError("set both pixel_mean and pixel_std, or neither")
        return self
