"""Vision backbones: an interface (:mod:`.base`), and an adapter for each library (timm and transformers). :data:`LIBRARIES` lists
the adapters."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from models.config import VisionConfig
from models.core.backbones import hub_backbone, timm_backbone
from models.core.backbones.base import Library, PixelStatistics, VisionBackbone
from models.core.hub import WEIGHTS, type_of_folder
from utils.errors import UserError
from utils.files import expanded
from utils.hub import TIMM

LIBRARIES = (hub_backbone.LIBRARY, timm_backbone.LIBRARY)
"""The libraries. The last library handles all names without a prefix."""

_checked: set[VisionConfig] = set()
"""Configs whose backbones have already been checked in this process."""


def library_of(name: str) -> Library:
    """Returns the library of a model, given its name in the config."""
    return next(library for library in LIBRARIES if name.startswith(library.prefix))


def build_backbone(config: VisionConfig) -> VisionBackbone:
    """Builds the backbone that ``config`` names, with random weights.

    Raises:
        UserError: if the library does not have this model or cannot build it with the given sizes, or if the model does not
            return a state for each patch.
    """
    try:
        backbone = library_of(config.backbone).adapter(config)
    except (AttributeError, KeyError, IndexError, TypeError) as error:
        raise UserError(
            f"{config.backbone!r} is neither a ViT nor a convolutional model with stages ({error})",
            where="model.vision.backbone",
            remedy="choose another model",
        ) from None
    if config not in _checked:
        backbone.check()
        _checked.add(config)
    return backbone


def save_backbone_config(config: VisionConfig, folder: Path) -> None:
    """Copies the files that are needed to build the backbone into a folder, unless its name is enough to build it. The name
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
    """Returns weights that a library can load; None if ``source`` is something else.

    Args:
        source: a name such as ``timm:beitv2_base_patch16_224.in1k_ft_in22k`` or ``hf:facebook/dinov2-base``, or the folder of a
            Hugging Face model.
        key: the config key that contains ``source``, for error messages.

    Raises:
        UserError: if the library does not have these weights.
    """
    for library in LIBRARIES:
        prefix = library.prefix or TIMM
        if source.startswith(prefix):
            return library.pretrained_weights(source.removeprefix(prefix), key)
    path = expanded(source)
    if path.is_file() and path.name in WEIGHTS and type_of_folder(str(path.parent)) is not None:
        path = path.parent  # transformers knows the names in the files that it has saved
    return hub_backbone.pretrained_weights(str(path), key) if path.is_dir() else None
