"""Finds the configs in ``configs/`` that can start from a weight file, and the config key that takes the file."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any, NamedTuple

import torch

from models.checkpoints.recognise import OTHER_NAMES, TABLE, WORDS, Recognised
from models.checkpoints.rename import Shapes
from models.checkpoints.settings import model_section
from models.config import ModelConfig
from models.core.vision import FRAME_POSITIONS
from models.core.xvlm import XVLM
from tasks import ROOT, TASKS
from utils.config_files import read_config
from utils.errors import UserError

ENCODERS = ("vision.", "text.", "fusion.")
_GRID = 4
"""Number of patches per side in the models that this module builds. Only tables of position biases depend on it."""


class Candidate(NamedTuple):
    """A config, with its path relative to ``configs/``, its section ``init``, and its model."""

    name: str
    init: dict[str, Any]
    model: ModelConfig


def starts(found: Recognised) -> tuple[str, list[str]]:
    """Returns the config key that takes the file, or "" if none does, and the configs in ``configs/`` whose encoders have the
    file's shapes."""
    if found.names != OTHER_NAMES:
        fits, key = _fits_model, "init.checkpoint"
    elif found.vision is not None:
        fits, key = _fits_vision, "init.vision"
    elif found.text is not None:
        fits, key = _fits_text, "init.text"
    else:
        return "", []
    return key, [candidate.name for candidate in candidates() if fits(found, candidate)]


@functools.cache
def candidates() -> tuple[Candidate, ...]:
    """Returns all configs in ``configs/`` that define a run."""
    listed = []
    for path in sorted((ROOT / "configs").glob("*/*.yaml")):
        values = read_config(path).values
        section = model_section({"model": values.get("model", {})})
        if path.parent.name != "presets" and values.get("task") in TASKS and section is not None:
            listed.append(Candidate(str(Path(path.parent.name, path.name)), dict(values.get("init") or {}), section))
    return tuple(listed)


def _fits_model(found: Recognised, candidate: Candidate) -> bool:
    init = candidate.init
    if init.get("vision"):
        return False
    expected = encoders_of(candidate.model, found.words)
    parts = ("vision.", "fusion.") if init.get("text") or init.get("new_text") else ENCODERS
    return expected is not None and _parts(expected, parts) == _parts(found.shapes, parts)


def _fits_vision(found: Recognised, candidate: Candidate) -> bool:
    expected = encoders_of(candidate.model, found.words)
    blocks = ("vision.backbone.blocks.", "vision.backbone.patch_embed.")
    if candidate.init.get("checkpoint") or expected is None:
        return False
    return _parts(expected, blocks) == _parts(found.shapes, blocks)


def _fits_text(found: Recognised, candidate: Candidate) -> bool:
    expected = encoders_of(candidate.model, found.words)
    if expected is None or found.text is None or (candidate.init.get("checkpoint") and not candidate.init.get("text")):
        return False
    layers = 1 + max((int(m[1]) for m in map(_TEXT_LAYER.match, expected) if m), default=-1)
    words = ("text.embeddings.", "text.encoder.layer.0.")
    return bool(layers) and found.text.layers % layers == 0 and _parts(expected, words) == _parts(found.shapes, words)


_TEXT_LAYER = re.compile(r"text\.encoder\.layer\.(\d+)\.")


def _parts(shapes: Shapes, prefixes: tuple[str, ...]) -> Shapes:
    """Returns the tensors whose shapes must match for loading, that is, all except tensors that are resized or may be missing."""
    return {
        name: tuple(shape)
        for name, shape in shapes.items()
        if name.startswith(prefixes) and not TABLE.fullmatch(name) and name != FRAME_POSITIONS
    }


def encoders_of(model: ModelConfig, words: int | None) -> Shapes | None:
    """Returns the shapes of a config's encoders, or None if they cannot be built.

    Args:
        words: vocabulary size to use if the config does not set it.
    """
    vision = model.vision.model_copy(update={"video": None, "drop_path": 0.0})
    if vision.positions == "backbone" and vision.backbone.startswith("beit"):
        vision = vision.model_copy(update={"image_size": _GRID * (vision.patch_size or 16)})
    if model.text.arch is None:  # the encoder's files would have to be downloaded
        return None
    section = model.model_copy(update={"vision": vision})
    return _build(section.model_dump_json(), model.text.arch.vocab_size or words)


@functools.cache
def _build(section: str, words: int | None) -> Shapes | None:
    try:
        with torch.device("meta"):
            model = XVLM(ModelConfig.model_validate_json(section), words)
    except UserError:
        return None
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    return shapes if WORDS in shapes else None
