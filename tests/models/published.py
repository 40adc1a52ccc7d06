"""Converts our models, of any size, to state dicts with the published names."""

from __future__ import annotations

import json

from torch import Tensor

from models.checkpoints.rename import LAYER, SHARED_WORDS, TIED, published_to_ours
from models.core.xvlm import XVLM
from tests.models.golden import GOLDEN

TEXT_LAYERS = 12
"""Number of text layers in the models whose published keys are listed."""


def published_state(model: XVLM, kind: str) -> dict[str, Tensor]:
    """The tensors of ``model`` as the authors' code would save them, with tied tensors stored twice.

    ``kind`` names a list of published keys for the full-size model (golden/checkpoint_keys). A smaller model has a part of these
    keys.
    """
    listed = json.loads((GOLDEN / "checkpoint_keys" / f"{kind}.json").read_text())["keys"]
    text_layers = len(model.text.encoder.layer)
    keys = [key for key in (_renumbered(key, text_layers) for key in listed) if key is not None]
    rename, ours = published_to_ours(text_layers), model.state_dict()
    state = {key: ours[rename(key)].clone() for key in keys if rename(key) in ours}
    assert {rename(key) for key in state} == ours.keys()
    for key, original in {**SHARED_WORDS, **TIED}.items():
        if key in keys and key not in state:
            state[key] = state[original].clone()
    return state


def _renumbered(key: str, text_layers: int) -> str | None:
    """Returns ``key`` as it is named in a stack with fewer text layers, or None if that stack has no such layer."""
    match = LAYER.fullmatch(key)
    if match is None or int(match[1]) < text_layers:
        return key
    layer = int(match[1]) - TEXT_LAYERS + text_layers
    return key.replace(f"layer.{match[1]}.", f"layer.{layer}.", 1) if layer >= text_layers else None
