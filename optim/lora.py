"""Low-rank adapters (LoRA, Hu et al. 2021) for linear layers, using the library peft.

The weight W of a layer stays fixed, and the adapter ``alpha / rank * B @ A``, which is added to W, is trained. A is (rank,
inputs) and B is (outputs, rank). B is initialised with zeros.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from importlib.util import find_spec
from typing import Any

from torch import Tensor, nn

from optim.config import HEADER, LoraConfig
from utils.errors import UserError
from utils.extras import install_command

INNER = ".base_layer."
"""Separates the name of an adapted layer from the names of its original weight and bias."""
DOWN, UP = ".lora_A.default.weight", ".lora_B.default.weight"
"""Suffixes of the names of A and B, after the name of the layer."""


def check_package(config: LoraConfig | None) -> None:
    """Raises :class:`UserError` if the config requests adapters but peft is not installed."""
    if config is not None and find_spec("peft") is None:
        raise UserError(f"needs peft, which is not installed: {install_command('lora')}", where="optim.lora")


def inject_adapters(parts: Mapping[str, nn.Module], layers: Collection[str], config: LoraConfig) -> None:
    """Adds adapters to linear layers. All other parameters in ``parts`` are frozen, so only the adapters train.

    Args:
        parts: modules of a model, by name.
        layers: full names of the linear layers, all of which are in these modules.
        config: config of the adapters.

    Raises:
        UserError: if peft is not installed.
    """
    check_package(config)
    import peft

    settings = peft.LoraConfig(
        r=config.rank, lora_alpha=config.alpha, lora_dropout=config.dropout, target_modules=list(layers)
    )
    # Wrap the modules in a container without a config, because peft would mistake the model's config for a Hugging Face config.
    container = nn.ModuleDict(dict(parts))
    peft.inject_adapter_in_model(settings, container)
    adapted = {name.removesuffix(DOWN) for name, _ in container.named_parameters() if name.endswith(DOWN)}
    assert adapted == set(layers), f"peft has not adapted exactly the requested layers: {adapted ^ set(layers)}"


def is_adapter(name: str) -> bool:
    """True if a parameter is one of the two matrices of an adapter."""
    return name.endswith((DOWN, UP))


def has_adapters(names: Iterable[str]) -> bool:
    """True if any of the parameter names belongs to an adapter."""
    return any(map(is_adapter, names))


def plain_name(name: str) -> str:
    """Returns the name that a parameter has in the model without adapters."""
    return name.replace(INNER, ".")


def merged(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any], source: str) -> dict[str, Tensor]:
    """Merges the adapters of a file into the weights of their layers: W + alpha / rank * B A.

    Args:
        tensors: tensors of the file.
        metadata: metadata from the header of the file.
        source: name of the file, for error messages.

    Raises:
        UserError: if the header does not contain the config of the adapters, an adapter is incomplete, or the weight that an
            adapter belongs to is missing.
    """
    config = config_of(metadata, source)
    _check_weights(tensors, source)
    result = {}
    for name, tensor in tensors.items():
        if is_adapter(name):
            continue
        layer = name.removesuffix(f"{INNER}weight")
        if layer != name:
            missing = [layer + end for end in (DOWN, UP) if layer + end not in tensors]
            if missing:
                raise UserError(
                    f"{missing[0]}, which is part of an adapter, is missing",
                    where=source,
                    remedy="copy or download the file again",
                )
            tensor = tensor + (tensors[layer + UP] @ tensors[layer + DOWN]) * config.scaling
        result[plain_name(name)] = tensor
    return result


def _check_weights(tensors: Mapping[str, Tensor], source: str) -> None:
    """Raises :class:`UserError` if the weights that adapters belong to are missing, as in files written by ``run.py checkpoint
    adapters``."""
    layers = {name.removesuffix(DOWN).removesuffix(UP) for name in tensors if is_adapter(name)}
    missing = [layer for layer in layers if f"{layer}{INNER}weight" not in tensors]
    if len(missing) == len(layers):
        raise UserError(
            "contains adapters without the weights they belong to",
            where=source,
            remedy="merge the folder into a model with `python run.py checkpoint merge`",
        )
    if missing:
        raise UserError(
            f"{min(missing)}{INNER}weight, the weight an adapter belongs to, is missing",
            where=source,
            remedy="copy or download the file again",
        )


def config_of(metadata: Mapping[str, Any], source: str) -> LoraConfig:
    """Returns the config of the adapters from the header of a file.

    Raises:
        UserError: if the config is missing or damaged.
    """
    try:
        return LoraConfig.model_validate(metadata[HEADER])
    except (KeyError, ValueError):
        found = json.dumps(metadata.get(HEADER))[:80]
        raise UserError(
            f"contains adapters, but the entry {HEADER!r} of its header is {found} instead of their config",
            where=source,
            remedy="use the file that the run wrote",
        ) from None
