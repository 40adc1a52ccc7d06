"""Loading of complete checkpoints into complete models. Tensors that are missing, resized or unused are always reported."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from models.checkpoints.convert import is_buffer, was_published
from models.checkpoints.files import read_weights
from models.checkpoints.rename import (
    DROPPED,
    LAYER,
    SEPARATE_FUSION,
    SHARED_WORDS,
    TIED,
    VOCABULARY_TENSORS,
    is_published,
    published_to_ours,
)
from models.checkpoints.report import LoadReport
from models.core.hub_text import HubTextEncoder
from models.core.text import TextEncoder, stretch_positions
from models.core.vision import FRAME_POSITIONS
from models.core.xvlm import XVLM
from optim.lora import has_adapters
from utils.errors import UserError

BACKBONE = "vision.backbone."
"""Prefix of the parameter names of the vision backbone."""
TEXT_POSITIONS = re.compile(r"(text|decoder)\.(.*\.)?position_embeddings?\.weight")
"""Names of the position tables of text encoders, built from our blocks or by transformers, and of answer decoders."""
DECODER_WORDS = "decoder.embeddings.word_embeddings.weight"
"""A parameter that a model has only if its answer decoder does not share the text encoder's word table."""


REMEDY = (
    "if model.text is meant to be a different encoder from the checkpoint's, name its weights in init.text, or "
    "set init.new_text=true to start it from random weights"
)


def load_weights(model: XVLM, path: str | Path, *, new_text: bool = False) -> LoadReport:
    """Loads one of our checkpoint files or a published one into ``model``; see :func:`load_published`.

    Adapters in the file are merged into the weights of their layers, unless the model also has adapters.
    """
    state = read_weights(path, merge=not has_adapters(model.state_dict()))
    if is_published(state):
        return load_published(model, state, str(path), new_text=new_text)
    report = LoadReport(str(path), published=was_published(path))
    parameters = model.state_dict()
    for name in [name for name in state if is_buffer(name) and name not in parameters]:
        report.dropped[name] = DROPPED[name.rsplit(".", 1)[-1]]
        del state[name]
    if new_text:
        state = _without_text(state, report, lambda name: name)
    assign(model, state, report)
    report.require_same_depth()
    return report


def load_published(model: XVLM, state: dict[str, Tensor], source: str, *, new_text: bool = False) -> LoadReport:
    """Loads a state dict with the published names. Tables of position biases are resized to the model's grid of patches.

    Parameters that are not in the file stay unchanged and are reported as fresh. Tensors without a parameter in the model are
    reported as unused. Call :meth:`LoadReport.require_complete` to turn fresh parameters and unused tensors into an error.

    Args:
        model: the model to load the tensors into.
        state: the tensors by their published names.
        source: name of the file, for the report and for error messages.
        new_text: True if the model's text encoder differs from the file's. The text encoder, and all parameters with a row for
            each entry of its vocabulary, then stay unchanged.

    Raises:
        UserError: if a shape or the depth of an encoder does not fit, or if two copies of a tied tensor differ.
    """
    report = LoadReport(source, published=True)
    kept: dict[str, Tensor] = {}
    separate_fusion = any(name.startswith(SEPARATE_FUSION) for name in state)
    copies = {**TIED, **SHARED_WORDS} if separate_fusion and DECODER_WORDS not in model.state_dict() else TIED
    for name, tensor in state.items():
        ending = name.rsplit(".", 1)[-1]
        if ending in DROPPED:
            report.dropped[name] = DROPPED[ending]
        elif name in copies and copies[name] in state:
            if not torch.equal(tensor, state[copies[name]]):
                remedy = "; set model.decoder.word_table=own" if name in SHARED_WORDS else ""
                raise UserError(f"{name} differs from {copies[name]}, to which the model ties it{remedy}", where=source)
            report.dropped[name] = f"tied to {copies[name]}"
        else:
            kept[name] = tensor
    rename = published_to_ours(_text_layers(model, state, source, separate_fusion, new_text))
    if new_text:
        kept = _without_text(kept, report, rename)
    assign(model, kept, report, rename)
    report.require_same_depth()
    return report


def _text_layers(model: XVLM, state: dict[str, Tensor], source: str, separate_fusion: bool, new_text: bool) -> int:
    """The number of layers of the file's text encoder, without the fusion layers."""
    fusion_layers = len(model.fusion.layer)
    file_layers = 1 + max((int(match[1]) for name in state if (match := LAYER.fullmatch(name))), default=-1)
    in_text = file_layers if separate_fusion else file_layers - fusion_layers
    if new_text and in_text >= 1:
        return in_text
    if isinstance(model.text, HubTextEncoder):
        raise UserError(
            "a published checkpoint needs a text encoder of the BERT or RoBERTa families", where=source, remedy=REMEDY
        )
    model_layers = len(model.text.encoder.layer)
    if in_text != model_layers:
        what = f"{file_layers} text layers, but the model has {model_layers}"
        if not separate_fusion:
            what = f"{file_layers} text and fusion layers, but the model has {model_layers} + {fusion_layers}"
        raise UserError(f"has {what}", where=source, remedy=REMEDY)
    return model_layers


def _without_text(
    state: dict[str, Tensor], report: LoadReport, rename: Callable[[str], str | None]
) -> dict[str, Tensor]:
    """The tensors that do not depend on the file's text encoder. The others are reported as dropped."""
    report.text_skipped = True
    kept = {}
    for name, tensor in state.items():
        if VOCABULARY_TENSORS.fullmatch(rename(name) or ""):
            report.dropped[name] = "the model has a different text encoder"
        else:
            kept[name] = tensor
    return kept


def assign(
    model: XVLM, state: dict[str, Tensor], report: LoadReport, rename: Callable[[str], str | None] = lambda name: name
) -> None:
    """Copies ``state`` into the model's parameters, resizes position tables, and records in ``report`` what happened."""
    parameters = model.state_dict(keep_vars=True)  # includes stored buffers, which some backbones have
    problems, widths = [], Counter[tuple[int, int]]()
    named = [(name, rename(name), tensor) for name, tensor in state.items()]
    copies = _copies(model, named, report)
    copied = set(report.copied.values())
    for name, our_name, tensor in (*named, *copies):
        if our_name is None or our_name not in parameters:
            if our_name not in copied:
                report.unused.append(name)
            continue
        stored = tuple(tensor.shape)
        tensor = fit(our_name, tensor, parameters[our_name], model, report)
        if tensor.shape != parameters[our_name].shape:
            problems.append(f"{name} is {stored}, but the model's {our_name} is {tuple(parameters[our_name].shape)}")
            if tensor.dim() > 1:  # the last axis of a table or of a linear layer's weight
                widths[tensor.shape[-1], parameters[our_name].shape[-1]] += 1
            continue
        with torch.no_grad():
            parameters[our_name].copy_(tensor)
        report.loaded.append(our_name)
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        remedy = REMEDY if any("'s text." in problem for problem in problems) else ""
        if not remedy and report.text_skipped:
            remedy = (
                "set width, heads, intermediate and eps in model.fusion to those of the checkpoint's fusion encoder"
            )
        if not remedy and any("vision.backbone." in problem for problem in problems):
            remedy = (
                "use the model.vision of the run, or the backbone, that the file belongs to; if model.vision has sizes of "
                "another backbone, add configs/presets/other_vision.yaml as the last entry of base"
            )
        width = ""
        for (in_file, in_model), count in widths.most_common(1):
            if count > 1 and in_file != in_model:
                width = f" (width {in_file} in the file, {in_model} in the model)"
        raise UserError(f"shapes differ{width}: {'; '.join(problems[:3])}{more}", where=report.source, remedy=remedy)
    loaded = set(report.loaded)
    report.fresh = [name for name in parameters if name not in loaded]


def _copies(
    model: XVLM, named: Sequence[tuple[str, str | None, Tensor]], report: LoadReport
) -> list[tuple[str, str, Tensor]]:
    """The tensors that the model copies from a pre-training checkpoint (:meth:`~models.core.xvlm.XVLM.copied_from`). Copies are
    recorded in ``report``."""
    origins = model.copied_from()
    sources = {ours: (name, tensor) for name, ours, tensor in named if ours is not None}
    if origins.keys() & sources.keys():
        return []
    copied = {target: source for target, source in origins.items() if source in sources}
    report.copied.update(copied)
    return [(sources[source][0], target, sources[source][1]) for target, source in copied.items()]


def fit(name: str, tensor: Tensor, parameter: Tensor, model: XVLM, report: LoadReport) -> Tensor:
    """Resizes ``tensor`` to the shape of ``parameter`` if it is a position table: biases or positions of patches for a different
    grid, frame positions for a different number of frames, or, with ``model.text.max_positions``, token positions. Other tensors
    are returned unchanged."""
    if name == FRAME_POSITIONS and tensor.shape != parameter.shape:
        return _fit_frames(name, tensor, parameter, report)
    stretches = model.config.text.max_positions is not None
    of_text = stretches and tensor.dim() == 2 and TEXT_POSITIONS.fullmatch(name) is not None
    if not (name.startswith(BACKBONE) or of_text) or tensor.shape == parameter.shape:
        return tensor
    try:
        if of_text:
            arch = model.text.arch if isinstance(model.text, TextEncoder) and name.startswith("text.") else None
            first = 0 if arch is None else arch.first_position
            resized = stretch_positions(tensor, len(parameter), first)
        else:
            resized = model.vision.vision_backbone.resized(name.removeprefix(BACKBONE), tensor)
    except ValueError as error:
        key = "model.text.max_positions" if of_text else "model.vision.image_size"
        raise UserError(
            f"{name} cannot be resized: {error}",
            where=report.source,
            remedy=f"set {key} to the value of the checkpoint",
        ) from None
    if resized is not tensor:
        report.resized[name] = f"{_rows(tensor)} to {_rows(resized)} rows"
    return resized


def _rows(table: Tensor) -> int:
    """The number of rows in a table of positions, whose last axis is the width or the number of heads."""
    return table.shape[:-1].numel()


def _fit_frames(name: str, tensor: Tensor, parameter: Tensor, report: LoadReport) -> Tensor:
    """Copies the positions of the first frames from ``tensor``; the rest come from ``parameter`` (as in the authors' code)."""
    if tensor.dim() != 4 or tensor.shape[2:] != parameter.shape[2:]:
        return tensor
    shared = min(tensor.shape[1], parameter.shape[1])
    fitted = parameter.detach().clone()
    fitted[:, :shared] = tensor[:, :shared]
    if shared < parameter.shape[1]:
        report.partly.append(name)
    report.resized[name] = (
        f"the first {shared} of {tensor.shape[1]} frames in the file, for {parameter.shape[1]} frames in the model"
    )
    return fitted
