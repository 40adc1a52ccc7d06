"""Exports a model: its graphs are compared with torch before the export is moved into place."""

from __future__ import annotations

import importlib.metadata
from dataclasses import replace
from pathlib import Path

from utils.errors import UserError
from utils.files import expanded, new_folder
from utils.version import VERSION
from x2vlm.calls import EXPORTED_TASKS
from x2vlm.export.comparing import TOLERANCE, differences
from x2vlm.export.files import SUFFIX, About, files_in, write_about
from x2vlm.export.graphs import require_packages, write_graphs
from x2vlm.export.runtime import OnnxRuntime
from x2vlm.model import Model
from x2vlm.runtime import TorchRuntime
from x2vlm.saving import save_settings


def export(model: Model, out: Path) -> About:
    """Write a model as a folder of ONNX graphs, which :func:`x2vlm.load` can read without the weights.

    Args:
        model: on the CPU, in float32; its task must have an export.
        out: the new folder, whose name ends with ``.onnx``.

    Raises:
        UserError: the task has no export, a package is missing, the folder already exists or cannot be written, a part of the
            network cannot be exported, or onnxruntime's results differ from torch's.
    """
    out = expanded(out)
    _check(model, out)
    about = describe(TorchRuntime(model.network, "fp32"))
    try:
        with new_folder(out) as folder:
            write_graphs(model.network, folder, model.origin)
            save_settings(model, folder)
            runtime = OnnxRuntime(folder, about, model.settings.model.vision.image_size)
            about = replace(
                about, differences=_small(differences(model, runtime), model.origin), files=files_in(folder)
            )
            write_about(folder, about)
    except OSError as error:
        raise UserError(
            f"{out}: cannot be written: {error.strerror or error}; give another folder, or free some space"
        ) from None
    return about


def describe(runtime: TorchRuntime) -> About:
    """Returns the description of a network's export, without its files."""
    releases = {name: importlib.metadata.version(name) for name in ("torch", "onnx", "onnxscript", "onnxruntime")}
    patch_size, made_with = runtime.network.vision.patch_size, {"x2vlm": VERSION, **releases}
    return About(
        runtime.weights, runtime.parameters, runtime.state_shape, patch_size, runtime.temperature, made_with=made_with
    )


def _check(model: Model, out: Path) -> None:
    """Reject what cannot be exported, before any work is done."""
    if model.settings.task not in EXPORTED_TASKS:
        raise UserError(
            f"export: {model.origin} is a model of task {model.settings.task}, which has no graphs; give one of task "
            f"{', '.join(EXPORTED_TASKS)}"
        )
    require_packages()
    if out.suffix != SUFFIX:
        raise UserError(f"--out {out}: an export is a folder whose name ends with {SUFFIX}; give {out}{SUFFIX}")
    if out.exists():
        raise UserError(f"--out {out}: already exists; remove it, or give another folder")


def _small(largest: dict[str, float], origin: str) -> dict[str, float]:
    """Returns the differences, after checking that each is within the tolerance.

    Raises:
        UserError: a difference is above the tolerance.
    """
    for name, apart in largest.items():
        if not apart <= TOLERANCE:  # NaN also fails this comparison
            raise UserError(
                f"export: {name} of {origin} differ by {apart:.1e} between torch and onnxruntime, more than {TOLERANCE:.0e}; "
                "nothing was written: use the model with torch, or try another release of onnxruntime"
            )
    return largest
