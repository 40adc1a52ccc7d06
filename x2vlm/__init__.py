"""X²-VLM in Python: load a trained model and apply it to your own images.

    from x2vlm import load

    model = load("runs/demo/pretrain-seed0")
    model.match("photo.jpg", ["a dog on a sofa", "a red bicycle"])

``load`` accepts a run's folder, a weight file, one of the authors' files, ``hub:owner/name``, or a folder written by ``run.py
export``. :class:`Model` documents the calls, and docs/using.md has an example of each.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import x2vlm.checkout  # noqa: F401  first: it reports user modules that hide ours
from utils.errors import UserError
from utils.version import VERSION

if TYPE_CHECKING:
    from x2vlm.attention import WordMap
    from x2vlm.inputs import Image, View
    from x2vlm.loading import load
    from x2vlm.model import Box, Judgement, Model
    from x2vlm.scoring import BoxScores
    from x2vlm.training import Training

__version__ = VERSION
__all__ = ["Box", "BoxScores", "Image", "Judgement", "Model", "Training", "UserError", "View", "WordMap", "load"]

_HOME = {
    "load": "x2vlm.loading",
    "Model": "x2vlm.model",
    "Box": "x2vlm.model",
    "BoxScores": "x2vlm.scoring",
    "Judgement": "x2vlm.model",
    "Image": "x2vlm.inputs",
    "View": "x2vlm.inputs",
    "WordMap": "x2vlm.attention",
    "Training": "x2vlm.training",
}


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])


def __getattr__(name: str) -> Any:
    """Imports names lazily: importing torch takes seconds, and ``--help`` does not need torch."""
    import importlib

    if name not in _HOME:
        raise AttributeError(f"module 'x2vlm' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
