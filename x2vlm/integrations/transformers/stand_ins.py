"""What the modelling file has in place of functions of this project that look for models of other projects."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any


def given_folder(name: str, files: Sequence[str], key: str, beside: Sequence[str] = ()) -> Path:
    """Stands for :func:`utils.hub.local_folder`: the configurations of encoders are in the model's own."""
    return Path(name.removeprefix("hf:"))


def not_in_this_file(*given: Any) -> Any:
    """Stands for functions that read the weights of encoders, which are in the model's own file."""
    raise NotImplementedError("this file builds an X²-VLM, and its weights are in model.safetensors")
