"""Whole checkpoints into whole models: nothing is missing, resized or left over in silence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from models.checkpoints.files import read_weights
from models.checkpoints.rename import DROPPED, LAYER, TIED, published_to_ours
from models.checkpoints.report import LoadReport
from models.checkpoints.tables import resize_bias_table
from models.text import HubTextEncoder
from models.vision import FRAME_POSITIONS
from models.xvlm import XVLM
from utils.errors import UserError

BIAS_TABLE = "relative_position_bias_table"


def load_weights(model: XVLM, path: str | Path) -> LoadReport:
    """Load our own or a published checkpoint file into ``model``; see :func:`load_published`."""
    state = read_weights(path)
    if any(name.startswith("vision_encoder.") for name in state):
        return load_published(model, state, str(path))
    report = LoadReport(str(path))
    assign(model, state, report)
    return report


def load_published(model: XVLM, state: dict[str, Tensor], source: str) -> LoadReport:
    """Load a state dict under the published names; bias tables are resized to the model's grid.

    Parameters that the file lacks stay as they are and are reported as fresh, tensors without a place as unused: ask
    :meth:`LoadReport.require_complete` where that is not wanted.

    Raises:
        UserError: if a shape does not fit, or two copies of a tied tensor differ.
    """
    report = LoadReport(source)
    kept: dict[str, Tensor] = {}
    for name, tensor in state.items():
        ending = name.rsplit(".", 1)[-1]
        if ending in DROPPED:
            report.dropped[name] = DROPPED[ending]
        elif name in TIED and TIED[name] in state:
            if not torch.equal(tensor, state[TIED[name]]):
                raise UserError(f"{source}: {name} differs from {TIED[name]}, to which the model ties it")
            report.dropped[name] = f"tied to {TIED[name]}"
        else:
            kept[name] = tensor
    if isinstance(model.text, HubTextEncoder):
        raise UserError(f"{source}: a published checkpoint needs a text encoder of the BERT or RoBERTa families")
    text_layers = len(model.text.encoder.layer)
    stacked = text_layers + len(model.fusion.layer)
    found = 1 + max((int(match[1]) for name in state if (match := LAYER.fullmatch(name))), default=-1)
    if found != stacked:
        raise UserError(
            f"{source}: has {found} text and fusion layers, the model {text_layers} + {stacked - text_layers}"
        )
    assign(model, kept, report, published_to_ours(text_layers))
    return report


def assign(
    model: XVLM, state: dict[str, Tensor], report: LoadReport, rename: Callable[[str], str | None] = lambda name: name
) -> None:
    """Copy ``state`` into the model's parameters, resizing bias tables, and write into ``report`` what became of what."""
    parameters = model.state_dict(keep_vars=True)  # buffers that are stored too, where a backbone has any
    problems = []
    named = [(name, rename(name), tensor) for name, tensor in state.items()]
    copies = _copies(model, named, report)
    copied = set(report.copied.values())
    for name, ours, tensor in (*named, *copies):
        if ours is None or ours not in parameters:
            if ours not in copied:
                report.unused.append(name)
            continue
        tensor = fit(ours, tensor, parameters[ours], model, report)
        if tensor.shape != parameters[ours].shape:
            problems.append(f"{name} is {tuple(tensor.shape)}, the model's {ours} {tuple(parameters[ours].shape)}")
            continue
        with torch.no_grad():
            parameters[ours].copy_(tensor)
        report.loaded.append(ours)
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise UserError(f"{report.source}: shapes differ: {'; '.join(problems[:3])}{more}")
    loaded = set(report.loaded)
    report.fresh = [name for name in parameters if name not in loaded]


def _copies(
    model: XVLM, named: Sequence[tuple[str, str | None, Tensor]], report: LoadReport
) -> list[tuple[str, str, Tensor]]:
    """What the model copies from a checkpoint of pre-training (:meth:`~models.xvlm.XVLM.copied_from`), noted in ``report``."""
    wanted = model.copied_from()
    sources = {ours: (name, tensor) for name, ours, tensor in named if ours is not None}
    if wanted.keys() & sources.keys():
        return []
    found = {target: source for target, source in wanted.items() if source in sources}
    report.copied.update(found)
    return [(sources[source][0], target, sources[source][1]) for target, source in found.items()]


def fit(name: str, tensor: Tensor, parameter: Tensor, model: XVLM, report: LoadReport) -> Tensor:
    """``tensor`` resized to ``parameter`` where it is a bias table of another grid or a table of other frames; otherwise as
    it is."""
    if name == FRAME_POSITIONS and tensor.shape != parameter.shape:
        return _fit_frames(name, tensor, parameter, report)
    if not name.endswith(BIAS_TABLE) or tensor.shape[0] == parameter.shape[0]:
        return tensor
    rows, columns = model.vision.grid
    if rows != columns:
        raise UserError(
            f"{report.source}: {name} can only be resized to a square patch grid, not to {rows} x {columns}"
        )
    try:
        resized = resize_bias_table(tensor, rows)
    except ValueError as error:
        raise UserError(f"{report.source}: {name} cannot be resized: {error}") from None
    report.resized[name] = f"{tensor.shape[0]} to {resized.shape[0]} rows"
    return resized


def _fit_frames(name: str, tensor: Tensor, parameter: Tensor, report: LoadReport) -> Tensor:
    """The first frames of ``tensor``; frames that it lacks stay as they are in ``parameter`` (as released)."""
    if tensor.dim() != 4 or tensor.shape[2:] != parameter.shape[2:]:
        return tensor
    both = min(tensor.shape[1], parameter.shape[1])
    fitted = parameter.detach().clone()
    fitted[:, :both] = tensor[:, :both]
    if both < parameter.shape[1]:
        report.partly.append(name)
    report.resized[name] = (
        f"the first {both} frames of {tensor.shape[1]} in the file, {parameter.shape[1]} in the model"
    )
    return fitted
