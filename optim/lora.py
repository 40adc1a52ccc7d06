"""Low-rank adapters (LoRA, Hu et al. 2021) of linear layers, by the library peft: the layer's weight W stays as it is, and
``alpha / rank * B @ A`` trains, with A (rank, inputs) and B (outputs, rank), which starts at zero."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from importlib.util import find_spec
from typing import Any, Literal, get_args

from pydantic import Field, field_validator
from torch import Tensor, nn

from utils.config import Config
from utils.errors import UserError

HEADER = "lora"
"""Entry of a weight file's header: the config of the adapters in the file."""
INNER = ".base_layer."
"""Stands in the names of an adapted layer's own weight and bias, after the name of the layer."""
DOWN, UP = ".lora_A.default.weight", ".lora_B.default.weight"
"""End the names of A and B, after the name of the layer."""

Part = Literal["vision", "text", "fusion", "decoder"]
PARTS: tuple[Part, ...] = get_args(Part)


class LoraConfig(Config):
    """Low-rank adapters that train in place of the weights of encoders."""

    rank: int = Field(ge=1, description="rank of the adapters: the rows of A and the columns of B")
    alpha: int = Field(16, ge=1, description="B A is multiplied by alpha / rank")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout of the input of A")
    targets: list[Part] | None = Field(
        None,
        description="parts that get adapters and whose own weights stay as they are: vision, text, fusion, decoder (an answer "
        "decoder); null: all that the model has and that optim.freeze does not name",
    )
    layers: Literal["attention", "all"] = Field(
        "all", description="linear layers that get one: attention (queries, keys, values, output) or all of a block"
    )
    lr: float | None = Field(None, gt=0, description="peak learning rate of the adapters; null: optim.lr")

    @field_validator("targets")
    @classmethod
    def _names_parts_once(cls, value: list[Part] | None) -> list[Part] | None:
        if value is not None and (not value or len(set(value)) < len(value)):
            raise ValueError("name each part once, and at least one; leave it out for all")
        return value

    @property
    def scaling(self) -> float:
        """The factor on B A."""
        return self.alpha / self.rank

    @property
    def about(self) -> dict[str, Any]:
        """Entry of a weight file's header about the adapters in it."""
        return {HEADER: self.model_dump()}


def check_package(config: LoraConfig | None) -> None:
    """Raises :class:`UserError` if adapters are asked for and peft is not installed."""
    if config is not None and find_spec("peft") is None:
        raise UserError('optim.lora: needs peft, which is not installed: pip install ".[lora]"')


def inject_adapters(parts: Mapping[str, nn.Module], layers: Collection[str], config: LoraConfig) -> None:
    """Replace linear layers by adapted ones. All else in ``parts`` stays as it is: nothing but the adapters trains there.

    Args:
        parts: of a model, by name.
        layers: full names of the linear layers, each in one of the parts.
        config: of the adapters.

    Raises:
        UserError: if peft is not installed.
    """
    check_package(config)
    import peft

    settings = peft.LoraConfig(
        r=config.rank, lora_alpha=config.alpha, lora_dropout=config.dropout, target_modules=list(layers)
    )
    # A container without a config: peft would take the model's for one of Hugging Face's.
    holder = nn.ModuleDict(dict(parts))
    peft.inject_adapter_in_model(settings, holder)
    adapted = {name.removesuffix(DOWN) for name, _ in holder.named_parameters() if name.endswith(DOWN)}
    assert adapted == set(layers), f"peft has adapted other layers: {adapted ^ set(layers)}"


def is_adapter(name: str) -> bool:
    """Whether a parameter is A or B of an adapter."""
    return name.endswith((DOWN, UP))


def has_adapters(names: Iterable[str]) -> bool:
    """Whether there are adapters among parameters of these names."""
    return any(map(is_adapter, names))


def plain_name(name: str) -> str:
    """The name that a parameter has in the model without adapters."""
    return name.replace(INNER, ".")


def merged(tensors: Mapping[str, Tensor], about: Mapping[str, Any], source: str) -> dict[str, Tensor]:
    """The weights of a file without its adapters, which are added to the weights of their layers: W + alpha / rank * B A.

    Args:
        tensors: of the file.
        about: its header.
        source: names it in messages.

    Raises:
        UserError: if the header does not say how the adapters are scaled, or one of them is not whole or has no weight.
    """
    config = config_of(about, source)
    _check_weights(tensors, source)
    result = {}
    for name, tensor in tensors.items():
        if is_adapter(name):
            continue
        layer = name.removesuffix(f"{INNER}weight")
        if layer != name:
            missing = [layer + end for end in (DOWN, UP) if layer + end not in tensors]
            if missing:
                raise UserError(f"{source}: lacks {missing[0]}, a part of an adapter; copy or fetch the file again")
            tensor = tensor + (tensors[layer + UP] @ tensors[layer + DOWN]) * config.scaling
        result[plain_name(name)] = tensor
    return result


def _check_weights(tensors: Mapping[str, Tensor], source: str) -> None:
    """Refuse adapters without the weights that they are added to, as in a file of ``run.py checkpoint adapters``."""
    layers = {name.removesuffix(DOWN).removesuffix(UP) for name in tensors if is_adapter(name)}
    lacking = [layer for layer in layers if f"{layer}{INNER}weight" not in tensors]
    if len(lacking) == len(layers):
        raise UserError(
            f"{source}: has adapters without the weights that they are added to; make a model of its folder with "
            "`python run.py checkpoint merge`"
        )
    if lacking:
        raise UserError(
            f"{source}: lacks {min(lacking)}{INNER}weight, the weight of an adapter; copy or fetch the file again"
        )


def config_of(about: Mapping[str, Any], source: str) -> LoraConfig:
    """The config of the adapters in a file with this header.

    Raises:
        UserError: if there is none, or it is damaged.
    """
    try:
        return LoraConfig.model_validate(about[HEADER])
    except (KeyError, ValueError):
        found = json.dumps(about.get(HEADER))[:80]
        raise UserError(
            f"{source}: has adapters, but the entry {HEADER!r} of its header is {found}, not their config; take the file "
            "that the run wrote"
        ) from None
