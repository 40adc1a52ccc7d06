"""The weights of a model: finds or downloads their file, and loads them into the network."""

from __future__ import annotations

from pathlib import Path

import torch

from engine.checkpoint import find_weights
from models.checkpoints.loading import load_weights
from models.core.xvlm import XVLM
from tasks.base import ADAPTERS
from utils.errors import UserError
from utils.files import expanded
from utils.hub import local_folder
from x2vlm.integrations import MODELLING_FILE

HUB = "hub:"
"""Prefix of a model on the Hugging Face Hub."""


def weights_of(source: str) -> Path:
    """Returns the weight file of a source, as for :func:`x2vlm.load`. A model on the Hub is downloaded first.

    Raises:
        UserError: there are no weights, or they are in another format.
    """
    if source.startswith(HUB):
        folder = local_folder(
            source.removeprefix(HUB),
            ["model.safetensors"],
            source,
            extra_files=["*.yaml", "*.json", "tokenizer/*", "vision/*"],
        )
        return find_weights(folder)
    path = expanded(source)
    if not path.exists():
        raise UserError(
            "no such file or folder", where=source, remedy=f"pass a run's folder, a weight file, or {HUB}owner/name"
        )
    if (path / MODELLING_FILE).is_file():
        raise UserError(
            "saved for transformers",
            where=source,
            remedy="load it with AutoModel.from_pretrained, or save the model with format='x2vlm'",
        )
    if (path / ADAPTERS).is_file():
        raise UserError(
            "contains only adapters",
            where=source,
            remedy=f"build a model from them with `python run.py checkpoint merge {source} --base …`",
        )
    return find_weights(path)


def load_network(network: XVLM, weights: Path) -> None:
    """Loads all weights of a network.

    Raises:
        UserError: a weight is missing, does not fit the network, or is NaN or infinite; the message names the first one.
    """
    load_weights(network, weights).require_complete()
    for name, parameter in network.named_parameters():
        if not torch.stack(parameter.aminmax()).isfinite().all():
            raise UserError(
                f"{name} has values that are NaN or infinite, so the model cannot be used",
                where=weights,
                remedy="pass different weights, such as a previous checkpoint",
            )
