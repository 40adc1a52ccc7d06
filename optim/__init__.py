"""The optimiser: AdamW with the parameter groups of the authors' code, freezing, adapters, and averaged weights."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from types import MappingProxyType
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator
from torch import nn

from optim.ema import EmaConfig
from optim.freeze import FreezeConfig
from optim.lora import LoraConfig, is_adapter
from utils.config import Config
from utils.errors import UserError

NO_DECAY = ("bias", "LayerNorm.weight", "norm.weight", "norm1.weight", "norm2.weight")
"""A parameter whose name contains one of these strings has no weight decay, as in the authors' code. The strings match tables of
position biases and ``fc_norm``, but not LayerScale, the temperature, embeddings or the norm inside an MLP head."""

NEITHER_ENCODER = ("vision.frame_positions",)
"""Parameters that train at ``lr`` although the encoder that contains them has a separate learning rate, as in the authors'
code."""


Beta = Annotated[float, Field(ge=0, lt=1)]


class OptimConfig(Config):
    """Learning rates, constants of AdamW, freezing, adapters and averaged weights."""

    lr: float = Field(gt=0, description="peak learning rate")
    lr_mult: float = Field(2.0, gt=0, description="factor on lr for parameters that are not loaded from a checkpoint")
    vision_lr: float | None = Field(
        None, gt=0, description="peak learning rate of the vision encoder; null: lr; requires text_lr"
    )
    text_lr: float | None = Field(
        None, gt=0, description="peak learning rate of the text encoder and the word head; null: lr; requires vision_lr"
    )
    cross_lr: float | None = Field(
        None, gt=0, description="peak learning rate of the fusion encoder; null: text_lr, or lr"
    )
    vision_layer_decay: float = Field(
        1.0,
        gt=0,
        le=1,
        description="factor on the learning rate of a vision block for each block above it, and once more for "
        "parameters before the first block, as in fine-tuning of BEiT; 1: the same rate in all blocks",
    )
    weight_decay: float = Field(0.01, ge=0, description="weight decay of all parameters except biases and norms")
    betas: tuple[Beta, Beta] = Field((0.9, 0.98), description="decay rates of AdamW's two moment estimates")
    eps: float = Field(1e-8, gt=0, description="term in AdamW's denominator that prevents division by zero")
    fused: Literal["auto", "apex"] = Field(
        "auto", description="implementation of AdamW: auto (torch's fused one) or apex (NVIDIA's FusedAdam)"
    )
    freeze: FreezeConfig | None = Field(None, description="encoders to freeze; null: freeze none")
    lora: LoraConfig | None = Field(
        None,
        description="train low-rank adapters (LoRA) instead of the weights of encoders; null: train the weights",
    )
    ema: EmaConfig | None = Field(
        None,
        description="keep an exponential moving average of the weights, which is validated, evaluated and saved; "
        "null: no average",
    )

    @property
    def frozen(self) -> FreezeConfig:
        """The section ``freeze``, or its defaults if it is null."""
        return self.freeze or FreezeConfig()

    @model_validator(mode="after")
    def _apex_cannot_unfreeze(self) -> OptimConfig:
        unfrozen = list(self.frozen.unfrozen_after)
        if self.fused == "apex" and unfrozen:
            raise ValueError(
                f"freeze.{unfrozen[0]} is a number of steps, but apex keeps one step count for all parameters, and "
                "parameters that are unfrozen later have fewer steps; set fused to auto, or freeze for the whole run"
            )
        return self

    @model_validator(mode="after")
    def _frozen_parts_have_no_adapters(self) -> OptimConfig:
        both = [part for part in self.frozen.steps if self.lora and part in (self.lora.targets or ())]
        if both:
            raise ValueError(
                f"lora.targets contains {both[0]}, but freeze.{both[0]} would freeze its adapters; remove one of the "
                "two"
            )
        return self

    @model_validator(mode="after")
    def _rates_come_together(self) -> OptimConfig:
        if (self.vision_lr is None) != (self.text_lr is None):
            raise ValueError("set both vision_lr and text_lr, or neither")
        if self.cross_lr is not None and self.text_lr is None:
            raise ValueError("cross_lr needs vision_lr and text_lr")
        return self


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
) -> list[dict[str, Any]]:
    """Groups the trainable parameters by learning rate and weight decay, in order of first appearance.

    In addition to the entries that torch needs, each group has a ``name``, the ``names`` of its parameters, and ``peak_lr``.

    Args:
        parameters: names and parameters of the model.
        config: the config section ``optim``.
        fresh: names of the parameters that train at ``lr * lr_mult``.
        levels: number of levels above each parameter of the vision encoder (:func:`optim.setup.levels_above`).
    """
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in parameters:
        if not parameter.requires_grad:
            continue
        rate = learning_rate(name, config, fresh) * config.vision_layer_decay ** levels.get(name, 0)
        decay = 0.0 if any(part in name for part in NO_DECAY) else config.weight_decay
        label = f"lr={rate:g},decay={decay:g}"
        empty = {"params": [], "names": [], "name": label, "lr": rate, "peak_lr": rate, "weight_decay": decay}
        group = groups.setdefault((rate, decay), empty)
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())


def build_optimizer(groups: list[dict[str, Any]], config: OptimConfig) -> torch.optim.Optimizer:
    """Builds AdamW with fused kernels.

    Torch applies weight decay before the update, but the authors' code applies it afterwards (p' - lr * wd * p', where p' is the
    updated value). The results differ by lr * wd * |update|, which is at most 1e-6 of an update at the published rates.

    Raises:
        UserError: if ``optim.fused`` is apex, but NVIDIA apex is not installed or cannot run.
    """
    if config.fused == "apex":
        return _apex(groups, config)
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)


def _apex(groups: list[dict[str, Any]], config: OptimConfig) -> torch.optim.Optimizer:
    try:
        from apex.optimizers import FusedAdam
    except ImportError:
        raise UserError(
            "optim.fused: apex, but NVIDIA apex is not installed (it must be built from source; the package `apex` "
            "on PyPI is unrelated); use `optim.fused=auto` for torch's fused AdamW"
        ) from None
    try:
        return FusedAdam(groups, lr=config.lr, betas=config.betas, eps=config.eps, adam_w_mode=True)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"optim.fused: apex cannot run here ({reason}); use `optim.fused=auto`") from None
