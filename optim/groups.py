"""The parameter groups of the authors' code, and their optimiser."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from optim.config import OptimConfig
from optim.lora import is_adapter
from optim.muon import MuonAndAdamW
from utils.errors import UserError

NO_DECAY = ("bias", "LayerNorm.weight", "norm.weight", "norm1.weight", "norm2.weight")
"""A parameter whose name contains one of these strings has no weight decay, as in the authors' code. The strings match tables of
position biases and ``fc_norm``, but not LayerScale, the temperature, embeddings or the norm inside an MLP head."""

NEITHER_ENCODER = ("vision.frame_positions",)
"""Parameters that train at ``lr`` although the encoder that contains them has a separate learning rate, as in the authors'
code."""


def learning_rate(name: str, config: OptimConfig, fresh: Collection[str]) -> float:
    """Returns the peak learning rate of the parameter ``name``.

    Adapters have a separate rate. Other parameters have the rate of their encoder, if it is set. Otherwise, they have ``lr``, or
    ``lr * lr_mult`` if they are fresh (not loaded from a checkpoint).
    """
    if config.lora is not None and is_adapter(name):
        return config.lora.lr or config.lr
    if config.vision_lr is not None and config.text_lr is not None and name not in NEITHER_ENCODER:
        if name.startswith("vision."):
            return config.vision_lr
        if name.startswith("fusion."):
            return config.cross_lr or config.text_lr
        if name.startswith(("text.", "word_head.")):
            return config.text_lr
    return config.lr * config.lr_mult if name in fresh else config.lr


def parameter_groups(
    parameters: Iterable[tuple[str, nn.Parameter]],
    config: OptimConfig,
    fresh: Collection[str],
    levels: Mapping[str, int] = MappingProxyType({}),
    matrices: Collection[str] = (),
) -> list[dict[str, Any]]:
    """Groups the trainable parameters by optimiser, learning rate and weight decay, in order of first appearance.

    In addition to the entries that torch needs, each group has a ``name``, the ``names`` of its parameters, ``peak_lr``, and
    ``muon``, which is True for a group that Muon trains.

    Args:
        parameters: names and parameters of the model.
        config: the config section ``optim``.
        fresh: names of the parameters that train at ``lr * lr_mult``.
        levels: number of levels above each parameter of the vision encoder (:func:`optim.setup.levels_above`).
        matrices: names of the parameters that Muon trains if ``config.muon`` is set
            (:func:`optim.muon.matrices_in_blocks`).
    """
    groups: dict[tuple[float, float, bool], dict[str, Any]] = {}
    for name, parameter in parameters:
        if not parameter.requires_grad:
            continue
        rate = learning_rate(name, config, fresh) * config.vision_layer_decay ** levels.get(name, 0)
        decay = 0.0 if any(part in name for part in NO_DECAY) else config.weight_decay
        muon = config.muon if name in matrices else None
        if muon is not None:
            rate *= muon.lr_factor
        label = f"lr={rate:g},decay={decay:g}" + (",muon" if muon else "")
        empty = {
            "params": [],
            "names": [],
            "name": label,
            "lr": rate,
            "peak_lr": rate,
            "weight_decay": decay,
            "muon": muon is not None,
        }
        group = groups.setdefault((rate, decay, muon is not None), empty)
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())


def build_optimizer(groups: list[dict[str, Any]], config: OptimConfig) -> torch.optim.Optimizer:
    """Builds AdamW with fused kernels, or, with ``config.muon``, Muon and AdamW.

    Torch applies weight decay before the update, but the authors' code applies it afterwards (p' - lr * wd * p', where p' is the
    updated value). The results differ by lr * wd * |update|, which is at most 1e-6 of an update at the published rates.

    Raises:
        UserError: if ``optim.fused`` is apex, but NVIDIA apex is not installed or cannot run.
    """
    if config.fused == "apex":
        return _apex(groups, config)
    if config.muon is not None:
        return MuonAndAdamW(groups, config.muon, config.betas, config.eps)
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)


def _apex(groups: list[dict[str, Any]], config: OptimConfig) -> torch.optim.Optimizer:
    try:
        from apex.optimizers import FusedAdam
    except ImportError:
        raise UserError(
            "apex, but NVIDIA apex is not installed (it must be built from source; the package `apex` on PyPI "
            "is unrelated)",
            where="optim.fused",
            remedy="use `optim.fused=auto` for torch's fused AdamW",
        ) from None
    try:
        return FusedAdam(groups, lr=config.lr, betas=config.betas, eps=config.eps, adam_w_mode=True)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"apex cannot run here ({reason})", where="optim.fused", remedy="use `optim.fused=auto`"
        ) from None
