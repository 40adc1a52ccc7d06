"""Comparison of settings that cannot be seen in the shapes of weights. If such a setting differs, trained weights load without an
error but compute different results."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from models.config import ModelConfig, TextConfig, VisionConfig
from models.core.backbones import pixel_statistics
from models.core.hub_text import architecture_of, hub_config_of, is_bert_family
from models.core.text import TextEncoder
from models.core.xvlm import XVLM
from utils.config import with_previous_defaults
from utils.errors import UserError
from utils.image_size import ImageSize, NativeSize, sides_for, sides_of

PUBLISHED_HEAD_WIDTH = 64
PUBLISHED_FUSION_EPS = 1e-12

Settings = dict[str, Any]
"""Values by config key; None if unknown."""


def unseen_settings(config: ModelConfig) -> Settings:
    """The settings of a model that the shapes of its weights do not show, including settings that come from its text encoder."""
    text, vision, fusion = _text_settings(config.text), config.vision, config.fusion
    return {
        "model.vision.backbone": vision.backbone,
        "model.vision.heads": vision.heads,
        "model.vision.patch_positions": vision.patch_positions,
        **_pixel_settings(vision),
        **{f"model.text.arch.{name}": value for name, value in text.items()},
        "model.fusion.heads": fusion.heads or text["heads"],
        "model.fusion.eps": fusion.eps or text["eps"],
    }


def _pixel_settings(config: VisionConfig) -> Settings:
    try:
        statistics = pixel_statistics(config)._asdict()
    except UserError:  # the folder has been moved
        return {}
    return {f"model.vision.pixel_{name}": "[{},{},{}]".format(*values) for name, values in statistics.items()}


def _text_settings(config: TextConfig) -> Settings:
    arch = config.arch
    if arch is None:
        try:
            hub = hub_config_of(config.encoder)
        except UserError:  # the folder has been moved
            return dict.fromkeys(("family", "heads", "eps", "pad_id"))
        if not is_bert_family(hub):
            return {"family": None, "heads": getattr(hub, "num_attention_heads", None), "eps": None, "pad_id": None}
        arch = architecture_of(hub)
    # BERT counts positions from 0, whatever its padding id.
    pad_id = arch.pad_id if arch.family == "roberta" else None
    return {"family": arch.family, "heads": arch.heads, "eps": arch.eps, "pad_id": pad_id}


def model_section(values: Mapping[str, Any]) -> ModelConfig | None:
    """The encoders' settings in a run's config; None if the config is from a different version and cannot be compared."""
    section = with_previous_defaults(values.get("model"), ModelConfig)
    if not isinstance(section, dict):
        return None
    try:
        return ModelConfig.model_validate({name: section.get(name, {}) for name in ModelConfig.model_fields})
    except ValidationError:
        return None


def require_same_settings(model: XVLM, trained: ModelConfig, source: str, *, new_text: bool) -> None:
    """Compares a model with the config that its weights were trained with.

    Args:
        model: the model that has loaded the weights.
        trained: the config that the weights were trained with.
        source: file of this config, for the message.
        new_text: True if the model's text encoder differs from the trained one.

    Raises:
        UserError: if any setting differs; the message names all differences.
    """
    ours, expected = unseen_settings(model.config), unseen_settings(trained)
    wrong = {
        key: value
        for key, value in expected.items()
        if None not in (value, ours.get(key))
        and value != ours[key]
        and not (new_text and key.startswith("model.text."))
    }
    if _tables_misfit(model.config.vision.image_size, trained.vision.image_size):
        key = "model.vision.image_size"
        ours[key], wrong[key] = (_sides(config.vision.image_size) for config in (model.config, trained))
    if wrong:
        differences = "; ".join(f"{key} is {ours[key]} instead of {value}" for key, value in wrong.items())
        remedy = " ".join(
            f"{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in wrong.items()
        )
        raise UserError(
            f"its weights were trained with different settings ({source}): {differences}",
            where="init.checkpoint",
            remedy=f"set {remedy}",
        )


def _tables_misfit(ours: ImageSize, trained: ImageSize) -> bool:
    """True if trained position tables cannot be used for our image size, although their lengths may not show it. Tables for a
    grid that is not square are never resized, and grids with the same number of patches have tables of the same length.
    """
    # The tables of a model for images of any shape belong to a square.
    (height, width), (trained_height, trained_width) = (sides_for(size, 1, 1) for size in (ours, trained))
    differ = (height, width) != (trained_height, trained_width)
    return differ and (trained_height != trained_width or height * width == trained_height * trained_width)


def _sides(size: ImageSize) -> str:
    """The size as a value for the command line, without spaces."""
    if isinstance(size, NativeSize):
        return f"{{max_patches:{size.max_patches},patch_size:{size.patch_size}}}"
    return "[{},{}]".format(*sides_of(size))


def differences_from_published(model: XVLM) -> list[str]:
    """Returns the settings in which a model that has loaded a published file differs from all published models, as lines for a
    log."""
    parts = {"model.fusion": model.fusion.config}
    if isinstance(model.text, TextEncoder):
        parts["model.text.arch"] = model.text.block_config
    differences = [
        f"{key}.heads is {layer.heads} at a width of {layer.width}, a head in published models has "
        f"{PUBLISHED_HEAD_WIDTH}"
        for key, layer in parts.items()
        if layer.heads * PUBLISHED_HEAD_WIDTH != layer.width
    ]
    eps = model.fusion.config.eps
    if eps != PUBLISHED_FUSION_EPS:
        differences.append(f"model.fusion.eps is {eps:g}, in published models {PUBLISHED_FUSION_EPS:g}")
    return differences
