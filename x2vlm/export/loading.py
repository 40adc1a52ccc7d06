"""Loads an export, for :func:`x2vlm.load`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dataset.text.loading import load_tokenizer
from engine.run_files import CONFIG_FILE
from tasks.base import TOKENIZER
from utils.errors import UserError
from x2vlm.export.files import read_metadata
from x2vlm.export.runtime import OnnxRuntime
from x2vlm.model import Model
from x2vlm.settings import settings_of_run


def load_export(folder: Path, source: str, **options: Any) -> Model:
    """Loads the model in the folder of an export.

    Args:
        folder: folder of the export.
        source: the source that the user passed to :func:`x2vlm.load`.
        options: the other arguments of :func:`x2vlm.load`, most of which do not apply, because an export has its own config,
            tokenizer, device and precision.

    Raises:
        UserError: the folder is not an export, the export is damaged, or an option does not apply to exports.
    """
    allowed = {
        "device": (None, "cpu"),
        "precision": ("fp32",),
        "config": (None,),
        "tokenizer": (None,),
        "answers": (None,),
    }
    for name, value in options.items():
        if (value if value is None else str(value)) not in allowed[name]:
            raise UserError(
                f"{source} is an export to ONNX, which runs on the CPU in fp32 with its own config and tokenizer",
                remedy=f"remove {name} ({value})",
            )
    metadata = read_metadata(folder)
    settings, _ = settings_of_run(folder / CONFIG_FILE)
    tokenizer = load_tokenizer(folder / TOKENIZER, "tokenizer")
    runtime = OnnxRuntime(folder, metadata, settings.model.vision.image_size)
    return Model(runtime, tokenizer, settings, origin=source)
