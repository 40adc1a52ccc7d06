"""The config of the vision encoder."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from models.core.blocks import MAX_BLOCKS, MAX_HEADS, MAX_WIDTH
from utils.config import Config
from utils.hub import TIMM
from utils.image_size import ImageSize


class VideoConfig(Config):
    """Frames of a video and their pooling."""

    frames: int = Field(ge=1, description="number of frames that are taken from a video")
    pooling: Literal["mean", "tokens"] = Field(
        "mean",
        description="mean: mean of the frames' patches over time (published), which forgets their order; tokens: the fusion "
        "attends to the patches of every frame",
    )


PUBLISHED_PIXELS = {
    "pixel_mean": (0.48145466, 0.4578275, 0.40821073),
    "pixel_std": (0.26862954, 0.26130258, 0.27577711),
}
"""CLIP's statistics. The published models use them for every backbone, including BEiT-2."""


def _without_timm(name: object) -> object:
    """Removes the prefix of weights of timm; names of its models have none."""
    return name.removeprefix(TIMM) if isinstance(name, str) else name


class VisionConfig(Config):
    """A vision model by name; null sizes are the backbone's."""

    earlier_values = PUBLISHED_PIXELS

    backbone: Annotated[str, BeforeValidator(_without_timm)] = Field(
        "beitv2_base_patch16_224",
        description="name of a timm model (`timm.list_models()`), with or without timm:, or hf: and the name or folder of a "
        "Hugging Face model, such as hf:facebook/dinov2-base",
    )
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
    layer_scale: float | Literal["backbone"] | None = Field(
        "backbone",
        description="initial LayerScale; backbone: as the backbone has it; null: none; the published BEiT-2 models use 0.1",
    )
    pixel_mean: tuple[float, float, float] | None = Field(
        None,
        description="mean of red, green and blue, of 0 to 1, by which pixels are normalised; null: the backbone's; the published "
        "models use CLIP's for every backbone",
    )
    pixel_std: tuple[float, float, float] | None = Field(
        None, description="standard deviations of the colours; set with pixel_mean; null: the backbone's"
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

    @model_validator(mode="after")
    def _both_statistics_or_none(self) -> VisionConfig:
        if (self.pixel_mean is None) != (self.pixel_std is None):
            raise ValueError("set both pixel_mean and pixel_std, or neither")
        return self
