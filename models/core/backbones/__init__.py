"""Vision backbones: an interface (:mod:`.base`), and a file with an adapter for each library, which :data:`LIBRARIES` lists."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from models.core.backbones import hub_backbone, timm_backbone
from models.core.backbones.base import Library, PixelStatistics, VisionBackbone
from models.core.backbones.config import VisionConfig
from utils.errors import UserError
from utils.files import expanded
from utils.hub import TIMM

LIBRARIES = (hub_backbone.LIBRARY, timm_backbone.LIBRARY)
"""The libraries; the last one handles all names without a prefix."""

_checked: set[VisionConfig] = set()
"""Configs whose backbones have already been checked in this process."""


def library_of(name: str) -> Library:
    """Returns the library of a model, given its name in the config."""
    return next(library for library in LIBRARIES if name.startswith(library.prefix))


def build_backbone(config: VisionConfig) -> VisionBackbone:
    """Builds the backbone that ``config`` names, with random weights.

    Raises:
        UserError: if the library does not have this model, cannot build it with the given sizes, or the model does not return a
            state for each patch.
    """
    try:
        backbone = library_of(config.backbone).adapter(config)
    except (AttributeError, KeyError, IndexError, TypeError) as error:
        raise UserError(
            f"model.vision.backbone: {config.backbone!r} is neither a ViT nor a convolutional model with stages "
            f"({error}); choose another model"
        ) from None
    if config not in _checked:
        backbone.check()
        _checked.add(config)
    return backbone


def save_backbone_config(config: VisionConfig, folder: Path) -> None:
    """Copies the files that are needed to build the backbone into a folder, if its name alone is not enough. The name
    ``hf:FOLDER`` then works on any machine."""
    library = library_of(config.backbone)
    if library.save_config is not None:
        library.save_config(config.backbone, folder)


def pixel_statistics(config: VisionConfig) -> PixelStatistics:
    """Returns the pixel statistics in ``config`` or, if they are not set, the backbone's statistics."""
    if config.pixel_mean is not None and config.pixel_std is not None:
        return PixelStatistics(config.pixel_mean, config.pixel_std)
    return backbone_pixels(config.backbone)


def backbone_pixels(name: str) -> PixelStatistics:
    """Returns the pixel statistics that a backbone was trained with, given its name in the config."""
    return library_of(name).pixels_of(name)


def pretrained_weights(source: str, key: str) -> dict[str, Tensor] | None:
    """Returns published weights by name, such as ``timm:beitv2_base_patch16_224.in1k_ft_in22k`` or ``hf:facebook/dinov2-base``,
    or from the folder of a Hugging Face model; None if ``source`` is something else.

    Raises:
        UserError: if there are no such weights; the message names the config ``key``.
    """
    for library in LIBRARIES:
        prefix = library.prefix or TIMM
        if source.startswith(prefix):
            return library.pretrained_weights(source.removeprefix(prefix), key)
    return hub_backbone.pretrained_weights(source, key) if expanded(source).is_dir() else None
