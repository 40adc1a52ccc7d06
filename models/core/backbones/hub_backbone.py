"""Backbones from transformers, named by a Hugging Face name or folder."""

from __future__ import annotations

import inspect
import logging
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.config import VisionConfig, heads_error
from models.core.backbones.base import Library, PixelStatistics, VisionBackbone, keys_not_taken
from models.core.hub import (
    CONFIG,
    longest_module_list,
    model_class,
    part_config,
    part_weights,
    set_gradient_checkpointing,
)
from utils.errors import UserError
from utils.files import parse_json, replacing_folder, write_text
from utils.hub import HUB, TIMM, local_folder
from utils.tensors import on_meta

KEY = "model.vision.backbone"
PROCESSOR = "preprocessor_config.json"
"""File with the pixel statistics of a model."""
_SETTINGS = {
    "vision_use_head": False,
    "use_head": False,
    "pos_embed_shift": None,
    "pos_embed_jitter": None,
    "pos_embed_rescale": None,
}
"""Settings that remove the head, which would not get a gradient, and the random position augmentation that DINOv3 was pre-trained
with."""

logger = logging.getLogger(__name__)


class HubBackbone(VisionBackbone):
    """A vision model from transformers. The library adapts the position embeddings to the image size.

    SigLIP 2's variant for native resolutions takes a sequence of patches as input instead of an image.
    """

    def __init__(self, config: VisionConfig):
        name = hub_name(config.backbone)
        hub_config = _with_sizes(vision_config_of(name), config)
        unset = [key for key in ("patch_size", "stem", "positions") if _is_set(config, key)]
        if unset:
            raise keys_not_taken(config.backbone, unset)
        try:
            module: Any = model_class(hub_config)._from_config(hub_config)
        except (ValueError, ImportError) as error:
            raise UserError(f"{config.backbone}: {str(error).splitlines()[0]}", where="model.vision.backbone") from None
        _disable_function_caches(module)
        if getattr(module, "pooler", None) is not None:
            module.pooler = None  # unused, and DDP would wait for its gradients
        if config.layer_scale is None:
            for block in _blocks_of(module, config.backbone):
                for child in [child for child, _ in block.named_children() if child.startswith("layer_scale")]:
                    setattr(block, child, nn.Identity())
        super().__init__(
            module,
            config.backbone,
            _blocks_of(module, config.backbone),
            hub_config.hidden_size,
            hub_config.patch_size,
            config.image_size,
        )
        arguments = inspect.signature(module.forward).parameters
        self._takes_patches = "spatial_shapes" in arguments
        if self.native is not None:
            raise UserError(
                f"{config.backbone} takes images of one height and width only",
                where="model.vision.image_size",
                remedy="set it to a fixed size, or use timm's name of the model, if it has one",
            )
        if self._takes_patches:
            # Otherwise each forward pass checks the shapes on the device and waits for the result.
            os.environ.setdefault("TRANSFORMERS_DISABLE_TORCH_CHECK", "1")
        for parameter_name, parameter in module.named_parameters():
            if parameter_name.endswith("mask_token"):
                parameter.requires_grad_(False)  # only used when the backbone was pre-trained
        self._options = {"interpolate_pos_encoding": True} if "interpolate_pos_encoding" in arguments else {}
        # CLIP applies the norm only to the pooled state.
        self._norm = module.post_layernorm if hub_config.model_type == "clip_vision_model" else nn.Identity()
        if getattr(hub_config, "image_size", config.image_size) != config.image_size:
            self._check_image_size(config)

    def _check_image_size(self, config: VisionConfig) -> None:
        """Raises :class:`UserError` if the model cannot adapt its position embeddings to the image size."""
        try:
            with torch.no_grad():
                backbone = on_meta(self, self.module)
                backbone.patches(backbone.image())
        except (RuntimeError, ValueError):
            only_size = self.module.config.image_size
            raise UserError(
                f"{config.backbone} takes images of {only_size} pixels only",
                where="model.vision.image_size",
                remedy=f"set it to {only_size}",
            ) from None

    def states(self, pixels: Tensor) -> Tensor:
        inputs = self._as_patches(pixels) if self._takes_patches else {"pixel_values": pixels, **self._options}
        normed: Tensor = self._norm(self.module(**inputs).last_hidden_state)
        return normed

    def _as_patches(self, pixels: Tensor) -> dict[str, Tensor | None]:
        """The input of a model that takes a sequence of patches (I, P, p * p * 3), where p is the side of a patch. The pixels of
        a patch are in row-major order, with three colours per pixel."""
        side = self.patch_size
        patches = F.unfold(pixels, side, stride=side).transpose(1, 2)
        patches = patches.unflatten(2, (3, side * side)).transpose(2, 3).flatten(2)
        shapes = torch.tensor([self.grid], device=pixels.device).expand(pixels.shape[0], -1)
        return {"pixel_values": patches, "pixel_attention_mask": None, "spatial_shapes": shapes}

    def set_gradient_checkpointing(self, enabled: bool) -> None:
        set_gradient_checkpointing(self.module, enabled, "vision")

    def compile(self, **options: Any) -> None:
        self.module.compile(**options)


def hub_name(backbone: str) -> str:
    """Returns the name or folder of a Hugging Face model, without its prefix."""
    return backbone.removeprefix(HUB)


def pixels_of(backbone: str) -> PixelStatistics:
    """Returns the pixel statistics of a Hugging Face model from its preprocessing file.

    Raises:
        UserError: if the file is missing or has no statistics.
    """
    file = local_folder(hub_name(backbone), (CONFIG,), KEY, extra_files=(PROCESSOR,)) / PROCESSOR
    try:
        values = parse_json(file.read_text(encoding="utf-8"))
        values = values.get("image_processor", values)
        mean, std = ((float(r), float(g), float(b)) for r, g, b in (values["image_mean"], values["image_std"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{backbone}: no pixel statistics in {file} ({type(error).__name__})",
            where="model.vision.backbone",
            remedy="set model.vision.pixel_mean and pixel_std to the values that the model was trained with, such as "
            "[0.485, 0.456, 0.406] and [0.229, 0.224, 0.225] (ImageNet)",
        ) from None
    return PixelStatistics(mean, std)


def save_config(backbone: str, folder: Path) -> None:
    """Copies the files of a model that :class:`HubBackbone` needs into a folder, whose path then replaces the model's name."""
    with replacing_folder(folder) as copy:
        vision_config_of(hub_name(backbone)).save_pretrained(str(copy))
        processor = local_folder(hub_name(backbone), (CONFIG,), KEY, extra_files=(PROCESSOR,)) / PROCESSOR
        if processor.is_file():
            write_text(copy / PROCESSOR, processor.read_text(encoding="utf-8"))


def pretrained_weights(name: str, key: str) -> dict[str, Tensor]:
    """Returns the weights of a vision model; see :func:`models.core.hub.part_weights`."""
    return part_weights(name, vision_config_of(name, key), key)


def vision_config_of(name: str, key: str = KEY) -> Any:
    """Returns the configuration of a vision model; see :func:`models.core.hub.part_config`.

    Raises:
        UserError: if the configuration cannot be loaded, or if the model is not a ViT.
    """
    found = part_config(name, "vision", key, extra_files=(PROCESSOR,))
    if not all(
        isinstance(getattr(found, size, None), int) for size in ("num_hidden_layers", "hidden_size", "patch_size")
    ):
        remedy = f"use {TIMM}{name}" if found.model_type == "timm_wrapper" else "choose a ViT, or a timm model"
        raise UserError(f"{name} is a {found.model_type!r}, not a ViT of transformers", where=key, remedy=remedy)
    for setting, value in _SETTINGS.items():
        if hasattr(found, setting):
            setattr(found, setting, value)
    return found


def _with_sizes(hub_config: Any, config: VisionConfig) -> Any:
    """Applies the sizes and rates that our config sets."""
    ratio = hub_config.intermediate_size / hub_config.hidden_size if hasattr(hub_config, "intermediate_size") else None
    sizes = {"hidden_size": config.width, "num_hidden_layers": config.depth, "num_attention_heads": config.heads}
    for key, value in sizes.items():
        if value is not None:
            setattr(hub_config, key, value)
    if config.width is not None and ratio is not None:
        hub_config.intermediate_size = round(ratio * config.width)
    if error := heads_error(hub_config.hidden_size, hub_config.num_attention_heads):
        raise UserError(f"{error}", where="model.vision")
    rates: dict[str, Any] = {"drop_path_rate": config.drop_path, "layerscale_value": config.layer_scale}
    for key, rate in rates.items():
        if hasattr(hub_config, key) and rate not in ("backbone", None):
            setattr(hub_config, key, rate)
    if isinstance(config.layer_scale, float) and not hasattr(hub_config, "layerscale_value"):
        raise UserError(f"{config.backbone} has none", where="model.vision.layer_scale", remedy="set it to backbone")
    if config.drop_path and not hasattr(hub_config, "drop_path_rate"):
        logger.warning("model.vision.drop_path: %s has no such setting and drops no blocks", config.backbone)
    return hub_config


def _disable_function_caches(module: nn.Module) -> None:
    """Disables the function caches in the library's module. ``run.py plan`` and the check of a backbone call these functions with
    tensors without content. The results would stay in the caches and be used when training in the same process."""
    source = sys.modules[type(module).__module__]
    for name, function in list(vars(source).items()):
        if "func_with_cache" in getattr(getattr(function, "__code__", None), "co_freevars", ()):
            setattr(source, name, function.__wrapped__)


def _is_set(config: VisionConfig, key: str) -> bool:
    return bool(getattr(config, key) != type(config).model_fields[key].default)


def _blocks_of(module: nn.Module, name: str) -> list[nn.Module]:
    blocks = longest_module_list(module)
    if not blocks:
        raise UserError(f"{name} has no list of blocks", where="model.vision.backbone", remedy="choose a ViT")
    return blocks


LIBRARY = Library(HUB, HubBackbone, pixels_of, pretrained_weights, save_config)
