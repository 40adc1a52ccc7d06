"""Exports a model. The graphs are compared with torch before the export is moved into place."""

from __future__ import annotations

import importlib.metadata
from dataclasses import replace
from pathlib import Path

from utils.errors import UserError
from utils.files import expanded, new_folder
from utils.version import VERSION
from x2vlm.calls import EXPORTED_TASKS
from x2vlm.export.comparing import TOLERANCE, differences
from x2vlm.export.files import SUFFIX, Metadata, files_in, write_metadata
from x2vlm.export.graphs import require_packages, write_graphs
from x2vlm.export.runtime import OnnxRuntime
from x2vlm.model import Model
from x2vlm.runtime import TorchRuntime
from x2vlm.saving import save_settings


def export(model: Model, out: Path) -> Metadata:
    """Writes a model as a folder of ONNX graphs, which :func:`x2vlm.load` can read without the weights.

    Args:
        model: a model on the CPU, in float32, trained with a task that can be exported.
        out: path of the new folder, whose name must end with ``.onnx``.

    Raises:
        UserError: models of this task cannot be exported, a package is missing, the folder already exists or cannot be written, a
            component of the network cannot be exported, or onnxruntime's results differ from torch's.
    """
    out = expanded(out)
    _check(model, out)
    metadata = describe(TorchRuntime(model.network, "fp32"))
    try:
        with new_folder(out) as folder:
            write_graphs(model.network, folder, model.origin)
            save_settings(model, folder)
            runtime = OnnxRuntime(folder, metadata, model.settings.model.vision.image_size)
            metadata = replace(
                metadata,
                differences=_within_tolerance(differences(model, runtime), model.origin),
                files=files_in(folder),
            )
            write_metadata(folder, metadata)
    except OSError as error:
        raise UserError(
            f"cannot be written: {error.strerror or error}",
            where=out,
            remedy="pass a different folder, or free some space",
        ) from None
    return metadata


def describe(runtime: TorchRuntime) -> Metadata:
    """Returns the description of a network's export, without its files."""
    releases = {name: importlib.metadata.version(name) for name in ("torch", "onnx", "onnxscript", "onnxruntime")}
    patch_size, made_with = runtime.network.vision.patch_size, {"x2vlm": VERSION, **releases}
    return Metadata(
        runtime.weights, runtime.parameters, runtime.state_shape, patch_size, runtime.temperature, made_with=made_with
    )


def _check(model: Model, out: Path) -> None:
    """Rejects models and folders that cannot be used, before any work is done."""
    if model.settings.task not in EXPORTED_TASKS:
        raise UserError(
            f"{model.origin} is a model for the task {model.settings.task}, which cannot be exported",
            where="export",
            remedy=f"pass a model for the task {' or '.join(EXPORTED_TASKS)}",
        )
    require_packages()
    if out.suffix != SUFFIX:
        raise UserError(
            f"an export is a folder whose name ends with {SUFFIX}", where=f"--out {out}", remedy=f"pass {out}{SUFFIX}"
        )
    if out.exists():
        raise UserError("already exists", where=f"--out {out}", remedy="remove it, or pass a different folder")


def _within_tolerance(largest: dict[str, float], origin: str) -> dict[str, float]:
    """Checks that all differences are within the tolerance, and returns them.

    Raises:
        UserError: a difference is above the tolerance.
    """
    for name, difference in largest.items():
        if not difference <= TOLERANCE:  # NaN also fails this comparison
            raise UserError(
                f"{name} of {origin} differ by {difference:.1e} between torch and onnxruntime, more than "
                f"{TOLERANCE:.0e}",
                where="export",
                remedy="nothing was written: use the model with torch, or try a different version of onnxruntime",
            )
    return largest
