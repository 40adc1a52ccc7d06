"""Backbones from timm: all ViTs, and convolutional models with stages of blocks, such as ConvNeXt."""

from __future__ import annotations

import difflib
import logging
import math
import re
from pathlib import Path
from typing import Any, cast

import timm
import torch
from torch import Tensor, nn

from batches.images import NativeImages
from models.config import VisionConfig, heads_error
from models.core.backbones.base import (
    RESET_ALL,
    Library,
    PixelStatistics,
    VisionBackbone,
    check_image_size,
    keys_not_taken,
)
from models.core.backbones.native import NativeViT, creation_options
from models.core.backbones.positions import sincos_positions
from models.core.backbones.stem import ConvolutionalStem
from models.core.backbones.tables import resize_bias_table, resize_positions
from models.flops import linear_flops, step_flops, trains
from utils.errors import UserError
from utils.files import expanded, parse_json
from utils.hub import local_folder
from utils.image_size import NativeSize

BIAS_TABLE = "relative_position_bias_table"
"""Suffix of the names of BEiT's tables of relative position biases."""
SHARED_BIAS_TABLE = f"rel_pos_bias.{BIAS_TABLE}"
"""Name of the table that all blocks share in BEiT files."""
FILES = ("model.safetensors", "pytorch_model.bin")
"""Names under which timm saves weight files for the Hub."""
POSITIONS = "pos_embed"
"""Name of the table of absolute positions in most ViTs."""

_KEYS = {
    "patch_size": "patch_size",
    "embed_dim": "width",
    "depth": "depth",
    "num_heads": "heads",
    "init_values": "layer_scale",
}
"""The keys of ``model.vision`` that set options of ``timm.create_model``, by option."""
_IDENTITY = nn.Identity()

logger = logging.getLogger(__name__)


class TimmBackbone(VisionBackbone):
    """A timm model.

    The states of a ViT are its tokens, and the states of a convolutional model are the cells of its last feature map. The norm is
    applied before states are averaged, whereas some timm models apply it to the average.
    """

    def __init__(self, config: VisionConfig):
        module = _create(config)
        embed = _patch_embed(module)
        self._is_vit = embed is not None
        self._has_patch_embed = self._is_vit and hasattr(module, "patch_embed")
        patch_size = embed.patch_size[0] if self._is_vit else module.feature_info[-1]["reduction"]
        name = config.backbone
        check_image_size(config.image_size, patch_size)
        sized = config.width is not None or config.heads is not None
        heads = getattr(getattr(module.blocks[0], "attn", None), "num_heads", None) if self._is_vit and sized else None
        if heads is not None and (error := heads_error(module.num_features, heads)):
            raise UserError(f"{error}", where="model.vision")
        if config.layer_scale is None:
            for block in _blocks_of(module, name):  # with 0, some timm blocks would have LayerScale factors of 0
                for factor in ("gamma_1", "gamma_2"):
                    if isinstance(getattr(block, factor, None), nn.Parameter):
                        setattr(block, factor, None)
        if config.stem == "convolutions":
            module.patch_embed = ConvolutionalStem(module.patch_embed.grid_size, patch_size, module.num_features)
        if getattr(module, "attn_pool", None) is not None:
            module.attn_pool = None  # unused, and DDP would wait for its gradients
        super().__init__(module, name, _blocks_of(module, name), module.num_features, patch_size, config.image_size)
        self._native = NativeViT(module, name) if self.native is not None else None
        if config.positions == "sincos":
            _set_sincos_positions(module, name)

    def states(self, pixels: Tensor) -> Tensor:
        if self._native is not None:
            return getattr(self.module, "fc_norm", _IDENTITY)(self._native.states_of_grid(pixels, self.grid_of(pixels)))
        features: Tensor = self.module.forward_features(pixels)
        if self._is_vit:
            return getattr(self.module, "fc_norm", _IDENTITY)(features)
        norm = getattr(self.module.head, "norm", _IDENTITY)  # ConvNeXt applies this norm to the average
        return norm(features).flatten(2).transpose(1, 2)

    def native_states(self, images: NativeImages) -> Tensor:
        assert self._native is not None
        return getattr(self.module, "fc_norm", _IDENTITY)(self._native.states(images))

    def set_gradient_checkpointing(self, enabled: bool) -> None:
        try:
            self.module.set_grad_checkpointing(enabled)
        except (AssertionError, AttributeError):
            if enabled:
                raise UserError(
                    f"{self.name!r} does not support gradient checkpointing",
                    where="train.recompute",
                    remedy="remove `vision`",
                ) from None

    def step_flops(self) -> int:
        """Computed from sizes for a ViT, since counting the operations that torch runs takes up to three seconds."""
        if not self._has_patch_embed or not all(
            hasattr(block, "attn") and hasattr(block, "norm1") for block in self.blocks
        ):
            return super().step_flops()
        patches = self.max_patches
        tokens = patches + self.module.num_prefix_tokens
        embeds = trains(cast(nn.Module, self.module.patch_embed))
        entering, linear, attention = embeds, 0, 0
        for block in self.blocks:
            later = entering or trains(block)
            # If the normed input states have no gradient, the first matrix products do not compute gradients for them.
            normed = entering or trains(block.norm1)
            entry = [getattr(block.attn, name, None) for name in ("qkv", "q_proj", "k_proj", "v_proj")]
            linear += linear_flops(later, block) + linear_flops(normed, *entry) - linear_flops(later, *entry)
            attention += step_flops(2 * tokens**2 * self.width, later, later)
            entering = later
        embedding, positions = 0, patches
        convolutions = [layer for layer in self.module.patch_embed.modules() if isinstance(layer, nn.Conv2d)]
        for index in reversed(range(len(convolutions))):
            # Pixels have no gradient, but the states between convolutions do.
            embedding += step_flops(positions * convolutions[index].weight.numel(), embeds, embeds and index > 0)
            positions *= math.prod(convolutions[index].stride)
        return embedding + tokens * linear + attention

    def targets(self, name: str) -> list[str]:
        """BEiT's files have one table of position biases for all blocks."""
        if name == SHARED_BIAS_TABLE:
            return [f"blocks.{index}.attn.{BIAS_TABLE}" for index in range(len(self.blocks))]
        return [name]

    def resized(self, name: str, tensor: Tensor) -> Tensor:
        rows, columns = self.grid
        if name.endswith(BIAS_TABLE) and tensor.dim() == 2:
            return resize_bias_table(tensor, rows, columns)
        table = getattr(self.module, name) if name == POSITIONS else None
        if table is not None and table.dim() == 3 and table.shape[1:2] != tensor.shape[1:2]:
            return resize_positions(tensor, rows, columns, table.shape[1] - rows * columns)
        return tensor

    def compile(self, **options: Any) -> None:
        if self._native is None:
            self.module.forward_features = torch.compile(self.module.forward_features, **options)
        else:  # the number of different grids varies, but the shapes of the blocks' inputs do not
            for block in self.blocks:
                block.compile(**options)

    def call_projections(self) -> None:
        """Changes timm's BEiT and EVA models, which by default read the weight of one layer without calling the layer."""
        for module in self.module.modules():
            if getattr(module, "qkv_bias_separate", None) is False:
                module.qkv_bias_separate = True


def pixels_of(name: str) -> PixelStatistics:
    """Returns the pixel statistics of a timm model by name."""
    settings = _published_settings(name)
    if settings is None:
        raise UserError(
            f"timm has no model {name!r}", where="model.vision.backbone", remedy="`timm.list_models()` lists all models"
        )
    return PixelStatistics(tuple(settings.mean), tuple(settings.std))


def pretrained_weights(name: str, key: str) -> dict[str, Tensor]:
    """Returns the weights that timm publishes under a name such as ``beitv2_base_patch16_224.in1k_ft_in22k``, keyed by timm's
    parameter names. The weights come from the Hub cache or are downloaded.

    Args:
        name: name of the model, with or without the tag of its weights.
        key: config key that contains the name, for error messages.

    Raises:
        UserError: if timm has no weights under this name, or if the weights are not in the cache and cannot be downloaded.
    """
    if expanded(name).is_dir():
        return _weights_of_folder(expanded(name), key)
    settings = _published_settings(name)
    if settings is None or not settings.hf_hub_id:
        tags = timm.list_models(f"{name.partition('.')[0]}*", pretrained=True)
        near = tags[:5] or difflib.get_close_matches(name, timm.list_models(pretrained=True), 5, 0.5)
        known = f"; it has {', '.join(near)}" if near else ""
        raise UserError(f"timm has no weights {name!r}{known}", where=key)
    files = (settings.hf_hub_filename,) if settings.hf_hub_filename else FILES
    folder = local_folder(settings.hf_hub_id, files, key)
    file = next(folder / each for each in files if (folder / each).is_file())
    logger.info("%s: weights timm:%s; licence according to timm: %s", key, name, settings.license or "none stated")
    return _weights_of_file(name, file)


def _weights_of_folder(folder: Path, key: str) -> dict[str, Tensor]:
    """Returns the weights in a folder in which timm saved a model for the Hub."""
    try:
        saved = parse_json((folder / "config.json").read_text(encoding="utf-8"))
        name, sizes = str(saved["architecture"]), dict(saved.get("model_args") or {})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder} is not a folder saved by timm: config.json has no architecture ({error})", where=key
        ) from None
    file = next((folder / each for each in FILES if (folder / each).is_file()), None)
    if file is None:
        raise UserError(f"{folder} has no {' and no '.join(FILES)}", where=key)
    try:
        return _weights_of_file(name, file, **sizes)
    except (RuntimeError, TypeError, ValueError, KeyError) as error:
        raise UserError(
            f"timm cannot load {file.name} of {folder} as {name}: {str(error).splitlines()[0]:.150}", where=key
        ) from None


def _weights_of_file(name: str, file: Path, **sizes: Any) -> dict[str, Tensor]:
    """Returns the tensors of a file that belong to the model, under timm's names.

    timm converts files from other projects, but it also resizes tables, and parameters that are not in the file keep random
    values. If the file uses timm's names, this function therefore returns only tensors that are in the file, in their original
    size.

    Args:
        name: name of the model.
        file: the file.
        sizes: arguments of ``timm.create_model``.
    """
    options = {**sizes, "num_classes": 0, "pretrained_cfg_overlay": {"file": str(file)}}
    loaded: dict[str, Tensor] = timm.create_model(name, pretrained=True, **options).state_dict()
    stored: dict[str, Tensor] = timm.models.load_state_dict(str(file))
    known = [each for each in stored if each in loaded]
    if 2 * len(known) < len(stored):
        return loaded
    return {each: loaded[each] if loaded[each].shape == stored[each].shape else stored[each] for each in known}


def _published_settings(name: str) -> Any:
    """Returns timm's settings for the published weights of a model; None if timm does not have the model or the weights."""
    try:
        return timm.get_pretrained_cfg(name)
    except RuntimeError:  # a tag that the model does not have
        return None


def _create(config: VisionConfig) -> Any:
    if ":" in config.backbone:
        raise UserError(
            f"{config.backbone!r} has an unknown prefix",
            where="model.vision.backbone",
            remedy="use the name of a timm model without one, or hf: and the name or folder of a Hugging Face model",
        )
    if not timm.is_model(config.backbone):
        near = difflib.get_close_matches(config.backbone, timm.list_models(), 3)
        remedy = f"use {' or '.join(near)}" if near else "`timm.list_models()` lists all models"
        if expanded(config.backbone).is_file():
            remedy = "name the model that the file belongs to, and the file in init.vision"
        elif "/" in config.backbone:
            remedy = f"for a model of transformers, use hf:{config.backbone}"
        raise UserError(f"timm has no model {config.backbone!r}", where="model.vision.backbone", remedy=remedy)
    if config.patch_size is not None:
        check_image_size(config.image_size, config.patch_size)
    if config.width is not None and config.heads is not None and (error := heads_error(config.width, config.heads)):
        raise UserError(f"{error}", where="model.vision")  # before an assertion in timm fails
    options: dict[str, Any] = {
        "patch_size": config.patch_size,
        "embed_dim": config.width,
        "depth": config.depth,
        "num_heads": config.heads,
    }
    options = {name: value for name, value in options.items() if value is not None}
    if config.layer_scale != "backbone":
        options["init_values"] = config.layer_scale or 0.0  # 0 turns LayerScale off where timm uses it by default
    if config.positions == "sincos" and config.backbone.startswith("beit"):
        options["use_abs_pos_emb"] = True
    size = config.image_size
    sizes = creation_options(config.backbone, size) if isinstance(size, NativeSize) else {"img_size": size}
    options |= {"num_classes": 0, **({"drop_path_rate": config.drop_path} if config.drop_path else {})}
    try:
        module, refused = _create_without_refused(config.backbone, {**options, **sizes})
    except (RuntimeError, TypeError, AssertionError, ValueError) as error:
        reason = str(error).split("\n")[0].rstrip(".")
        given = ", ".join(f"{_KEYS[option]}={value}" for option, value in options.items() if option in _KEYS)
        raise UserError(
            f"timm cannot build {config.backbone!r}{f' with {given}' if given else ''}: {reason}",
            where="model.vision",
            remedy=f"change {given}, {RESET_ALL}" if given else "choose another model",
        ) from None
    refused -= sizes.keys()  # convolutional models take images of any size
    if _patch_embed(module) is None:  # some take a patch_size with another meaning
        refused |= options.keys() & {"patch_size", "num_heads"}
    keys = [key for option, key in _KEYS.items() if option in refused]
    if not hasattr(module, "patch_embed") or not hasattr(module, "blocks"):
        keys += [
            key for key, value in (("stem", "convolutions"), ("positions", "sincos")) if getattr(config, key) == value
        ]
    if keys:
        raise keys_not_taken(config.backbone, keys)
    return module


def _create_without_refused(name: str, options: dict[str, Any]) -> tuple[Any, set[str]]:
    """Creates a timm model with those options that it takes; returns the model and the names of the other options."""
    refused: set[str] = set()
    while True:
        try:
            taken = {option: value for option, value in options.items() if option not in refused}
            return timm.create_model(name, pretrained=False, **taken), refused
        except TypeError as error:
            unexpected = re.search(r"unexpected keyword argument '(\w+)'", str(error))
            if unexpected is None or unexpected[1] not in taken:
                raise
            refused.add(unexpected[1])


def _patch_embed(module: Any) -> Any:
    """Returns the layer that embeds the patches of a ViT; None for another model."""
    embed = getattr(module, "patch_embed", None) or getattr(module, "embeds", None)
    return embed if hasattr(module, "blocks") else None


def _blocks_of(module: Any, name: str) -> list[nn.Module]:
    """Returns the blocks of a ViT, or the blocks of all stages of a convolutional model."""
    if hasattr(module, "blocks"):
        return list(module.blocks)
    blocks = [block for stage in getattr(module, "stages", ()) for block in getattr(stage, "blocks", ())]
    if not blocks:
        raise UserError(
            f"{name!r} has neither a list `blocks`, like timm's ViTs, nor `stages` with `blocks`, like ConvNeXt",
            where="model.vision.backbone",
            remedy="choose a model that does (docs/encoders.md)",
        )
    return blocks


def _set_sincos_positions(module: Any, name: str) -> None:
    table = getattr(module, POSITIONS, None)
    if table is None:
        raise UserError(
            f"{name!r} has no absolute positions", where="model.vision.positions", remedy="set it to `backbone`"
        )
    rows, columns = module.patch_embed.grid_size
    positions = sincos_positions(rows, columns, table.shape[-1])
    with torch.no_grad():
        table.zero_()
        table[:, table.shape[1] - rows * columns :] = positions.to(table)


LIBRARY = Library("", TimmBackbone, pixels_of, pretrained_weights)
