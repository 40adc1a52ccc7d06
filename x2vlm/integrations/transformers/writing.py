"""Writes a model as a folder that transformers loads with ``trust_remote_code=True``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.config import AligningConfig, ContrastiveConfig
from models.core.text import TextEncoder
from models.core.vision import VisionEncoder
from utils.errors import UserError
from utils.files import write_text
from utils.hub import HUB
from utils.image_size import sides_of
from utils.version import VERSION
from x2vlm.calls import EXPORTED_TASKS
from x2vlm.integrations import MODELLING_FILE
from x2vlm.integrations.transformers import modeling
from x2vlm.integrations.transformers.bundle import Bundle, Target
from x2vlm.integrations.transformers.modeling import HEADS, X2VLMConfig, X2VLMModel, X2VLMProcessor

if TYPE_CHECKING:
    from x2vlm.base import LoadedModel

STAND_INS = "x2vlm.integrations.transformers.stand_ins"
REPLACED = {
    ("utils.hub", "local_folder"): "given_folder",
    ("models.core.hub", "part_weights"): "not_in_this_file",
    ("models.core.backbones.hub_backbone", "pretrained_weights"): "not_in_this_file",
    ("models.core.backbones.hub_backbone", "save_config"): "not_in_this_file",
    ("models.core.backbones.timm_backbone", "pretrained_weights"): "not_in_this_file",
}
"""Functions that the modelling file does not need, and their replacements in this file."""

HEADING = f'''"""X²-VLM (arXiv:2211.12402) in one file, for ``AutoModel`` and ``AutoProcessor`` of transformers.

x2vlm {VERSION} wrote this file from its own sources, which are named above each section. Do not edit it: change the sources, and
save the model again. The file needs torch, timm, transformers and pydantic. It opens no network connection and starts no
other program; it writes the configurations of encoders to a temporary folder while the model is built. Licence: Apache-2.0.
"""'''


def write(model: LoadedModel, folder: Path) -> None:
    """Writes the files of a model for transformers into an empty folder: weights, config, processor, and the modelling file.

    Raises:
        UserError: the task that the model was trained with is not supported, or the model is a video model, has a box-set head,
            or takes images of any shape.
    """
    settings = model.settings
    if settings.task not in EXPORTED_TASKS:
        raise UserError(
            f"{model.origin} is a model for the task {settings.task}",
            remedy=f"save(format='transformers') supports models for the tasks {', '.join(EXPORTED_TASKS)}",
        )
    if settings.model.vision.video is not None:
        raise UserError(
            f"{model.origin} is a video model", remedy="save(format='transformers') supports only image models"
        )
    if getattr(settings.model, "box_set", None) is not None:
        raise UserError(f"{model.origin} has a box-set head, which save(format='transformers') does not support")
    processor = _processor(model)
    saved, weights = X2VLMModel(config_of(model)), model.network.state_dict()
    buffers = dict(saved.named_buffers())
    saved.load_state_dict({name: weights[name] if name in weights else buffers[name] for name in saved.state_dict()})
    saved.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)  # transformers makes the file readable only by its owner
    processor.save_pretrained(folder)
    write_text(folder / MODELLING_FILE, modelling_file())
    _add_class_references(folder / "config.json", {"AutoConfig": "X2VLMConfig", "AutoModel": "X2VLMModel"})
    _add_class_references(folder / "processor_config.json", {"AutoProcessor": "X2VLMProcessor"})


def modelling_file() -> str:
    """Returns the modelling file, which is the same for all models."""
    stand_ins = {Target(*name): Target(STAND_INS, stand_in) for name, stand_in in REPLACED.items()}
    return Bundle(modeling.__name__, stand_ins).text(HEADING)


def config_of(model: LoadedModel) -> X2VLMConfig:
    """Returns the config of a model, with the actual sizes of its encoders."""
    network, settings = model.network, model.settings.model
    encoders: dict[str, Any] = {}
    text: dict[str, Any] = {"encoder": "none", "max_positions": None}
    if isinstance(network.text, TextEncoder):
        text["arch"] = network.text.arch
    else:
        hub_text: Any = network.text.model
        encoders["text"] = hub_text.config.to_dict()
    vision: dict[str, Any] = pixel_statistics(network.vision)
    if settings.vision.backbone.startswith(HUB):
        hub_vision: Any = network.vision.backbone
        encoders["vision"] = hub_vision.config.to_dict()
    parts = {
        "vision": settings.vision.model_copy(update=vision),
        "text": settings.text.model_copy(update=text),
    }
    sizes = settings.model_copy(update=parts).model_dump(mode="json")
    known = {name: value for name, value in sizes.items() if name in AligningConfig.model_fields}
    if "contrastive" in known:  # pre-training has more settings
        fields = ContrastiveConfig.model_fields
        known["contrastive"] = {name: value for name, value in known["contrastive"].items() if name in fields}
    heads = [
        head
        for head, name in zip(HEADS, ("contrastive", "matching_head", "box_head"), strict=True)
        if hasattr(network, name)
    ]
    return X2VLMConfig(known, heads, encoders)


def pixel_statistics(vision: VisionEncoder) -> dict[str, tuple[float, ...]]:
    """Returns the statistics with which pixels are normalised, as keys of the config."""
    return {name: tuple(getattr(vision, name).flatten().tolist()) for name in ("pixel_mean", "pixel_std")}


def _processor(model: LoadedModel) -> X2VLMProcessor:
    limits, vision = model.text.limits, model.network.vision
    return X2VLMProcessor(
        model.tokenizer,
        image_size=list(sides_of(model.settings.model.vision.image_size)),
        max_tokens=limits.max_tokens,
        max_words=limits.max_words,
        **{name: list(values) for name, values in pixel_statistics(vision).items()},
    )


def _add_class_references(file: Path, classes: dict[str, str]) -> None:
    """Adds references to the classes in the modelling file to a config."""
    module = MODELLING_FILE.removesuffix(".py")
    values = json.loads(file.read_text(encoding="utf-8"))
    values["auto_map"] = {name: f"{module}.{class_name}" for name, class_name in classes.items()}
    write_text(file, json.dumps(values, indent=2, sort_keys=True) + "\n")
