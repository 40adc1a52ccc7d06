"""Prepares a model for training: freezes parts, adds adapters, enables gradient checkpointing, and compiles encoders.

The functions work on any model. A part is a direct child module of the model, identified by its name. Encoders that support
gradient checkpointing, compiling and sharding implement the methods of :class:`EncoderBlocks`. Parts without these methods can be
frozen.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from types import MethodType
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import nn

from optim.config import PARTS, LoraConfig
from optim.lora import inject_adapters
from utils.errors import UserError

OUTSIDE_BLOCKS = ("vision.frame_positions", "text.projection.", "decoder.word_head.", "decoder.embeddings.")
"""Prefixes of parameters outside the blocks of a part. Fine-tuning initialises these parameters randomly, so they train even if
the part has adapters."""
MAX_COMPILATIONS = 64
"""Maximum number of compilations per function. A step never needs this many. Torch's default limit is 8."""


@runtime_checkable
class EncoderBlocks(Protocol):
    """An encoder, or a stack of blocks inside one, that supports gradient checkpointing, compiling and sharding."""

    @property
    def blocks_to_shard(self) -> Sequence[nn.Module]:
        """Blocks that run once per micro-batch; see :mod:`engine.parallel.fsdp`."""

    def set_gradient_checkpointing(self, enabled: bool) -> None:
        """Enables or disables gradient checkpointing of the blocks."""

    def compile_blocks(self, **options: Any) -> None:
        """Compiles the blocks with ``torch.compile``, without changing the names of parameters."""


@runtime_checkable
class CallsProjections(Protocol):
    """A module whose blocks read the weights of some linear layers by default, instead of calling them."""

    def call_projections(self) -> None:
        """Makes the blocks call all of their linear layers, so that adapters are applied."""


@runtime_checkable
class HasLevels(Protocol):
    """A part of a model whose blocks run one after the other. Each block is a level."""

    def levels_above(self) -> dict[str, int]:
        """Returns the number of levels above each parameter: 0 after the last block, 1 in the last block, and so on."""


def levels_above(model: nn.Module) -> dict[str, int]:
    """Returns the number of levels above each parameter, for the parts that have levels."""
    return {
        f"{part}.{name}": level
        for part, module in model.named_children()
        if isinstance(module, HasLevels)
        for name, level in module.levels_above().items()
    }


def encoders_in(module: nn.Module) -> Iterator[EncoderBlocks]:
    """Yields all encoders in a module, including the module itself."""
    return (each for each in module.modules() if isinstance(each, EncoderBlocks))


def set_gradient_checkpointing(model: nn.Module, parts: Collection[str]) -> None:
    """Enables gradient checkpointing in ``parts`` and disables it elsewhere. It saves memory and takes more time.

    Only the inputs of blocks, and the keys and values for cross-attention, are kept for the backward pass.

    Args:
        model: the model.
        parts: any of "vision", "text" and "fusion". "fusion" includes the answer decoder.

    Raises:
        UserError: if an encoder does not support gradient checkpointing.
    """
    for name, part in model.named_children():
        for encoder in encoders_in(part):
            encoder.set_gradient_checkpointing(("fusion" if name == "decoder" else name) in parts)


def compile_encoders(model: nn.Module, **options: Any) -> None:
    """Compiles all encoders with ``torch.compile``, passing on the options.

    The code between the encoders is not compiled, because it depends on values that are known only on the host. By default, torch
    stops compiling a function after 8 compilations. We raise this limit, because the fusion encoder is compiled once for each
    stream (type of training data) and each set of losses.
    """
    limits = torch._dynamo.config
    limits.recompile_limit = max(limits.recompile_limit, MAX_COMPILATIONS)
    for encoder in encoders_in(model):
        encoder.compile_blocks(**options)


def set_frozen(model: nn.Module, parts: Collection[str]) -> None:
    """Freezes ``parts``, and unfreezes all other parts that a previous call froze.

    The parameters of a frozen part have no gradients, and the part stays in evaluation mode, so its outputs depend only on its
    inputs. Gradients still flow through a frozen part to trainable parts. Parameters that were not trainable before freezing are
    not trainable after unfreezing either.

    Args:
        model: the model.
        parts: names of parts, such as "vision", "text" (including word embeddings that heads share) or "fusion".
    """
    for name, part in model.named_children():
        is_frozen = "frozen_parameters" in part.__dict__
        if name in parts and not is_frozen:
            part.frozen_parameters = [each for each in part.parameters() if each.requires_grad]  # type: ignore[assignment]
            for parameter in part.parameters():
                parameter.requires_grad_(False)
                parameter.grad = None
            stay_in_evaluation_mode(part)
        elif name not in parts and is_frozen:
            for parameter in part.__dict__.pop("frozen_parameters"):
                parameter.requires_grad_(True)
            del part.train
            part.train(model.training)
    _clear_cost(model)


def stay_in_evaluation_mode(module: nn.Module) -> None:
    """Puts a module into evaluation mode (no dropout, no drop path) permanently, whatever mode the model is set to."""
    module.eval()
    module.train = MethodType(_keep_mode, module)  # type: ignore[method-assign]


def _keep_mode(module: nn.Module, mode: bool = True) -> nn.Module:
    """Replacement for the method ``train`` of a module that stays in evaluation mode."""
    return module


def add_adapters(model: nn.Module, config: LoraConfig, frozen: Collection[str] = ()) -> None:
    """Adds low-rank adapters to the linear layers in the blocks of some parts. The adapters train instead of the layers.

    Parameters outside the blocks (:data:`OUTSIDE_BLOCKS`) and parts without adapters train as before.

    Args:
        model: the model.
        config: config of the adapters. If it does not list parts, all parts that can have adapters get them, except frozen parts.
        frozen: parts that never train. They do not get adapters unless the config lists them.

    Raises:
        UserError: if the model lacks a listed part, if nothing would train in a part, or if the rank of the adapters is not below
            the rank of any weight.
    """
    present = [part for part in PARTS if hasattr(model, part)]
    if missing := [part for part in config.targets or () if part not in present]:
        raise UserError(
            f"this task's model has no {missing[0]}, only {', '.join(present)}",
            where="optim.lora.targets",
            remedy="remove it",
        )
    targets = config.targets or [part for part in present if part not in frozen]
    layers: list[str] = []
    for part in targets:
        found = _layers_to_adapt(model, part, config.layers)
        if not found:
            raise UserError(
                f"no linear layer of {part} trains in this run",
                where="optim.lora.targets",
                remedy=f"remove {part} from the targets",
            )
        layers += found
    _check_rank(model, config.rank, layers)
    outside = [each for name, each in model.named_parameters() if name.startswith(OUTSIDE_BLOCKS)]
    keep_training = [parameter for parameter in outside if parameter.requires_grad]
    for part in targets:
        for module in model.get_submodule(part).modules():
            if isinstance(module, CallsProjections):
                module.call_projections()
    inject_adapters({part: model.get_submodule(part) for part in targets}, layers, config)
    for parameter in keep_training:
        parameter.requires_grad_(True)
    _clear_cost(model)


def _layers_to_adapt(model: nn.Module, part: str, layers: str) -> list[str]:
    """Returns the names of the trainable linear layers in the blocks of ``part``: all of them, or only those of attention."""
    return [
        name
        for inner, module in model.get_submodule(part).named_modules()
        if isinstance(module, nn.Linear)
        and module.weight.requires_grad
        and not (name := f"{part}.{inner}").startswith(OUTSIDE_BLOCKS)
        and (layers == "all" or any("att" in component for component in inner.split(".")))
    ]


def _check_rank(model: nn.Module, rank: int, layers: Sequence[str]) -> None:
    """Raises :class:`UserError` unless the rank of the adapters is below the rank of at least one weight."""
    sizes = {name: min(cast(nn.Linear, model.get_submodule(name)).weight.shape) for name in layers}
    widest = max(layers, key=sizes.__getitem__)
    if rank >= sizes[widest]:
        raise UserError(
            f"optim.lora.rank is {rank}, but no weight has a rank above {sizes[widest]} ({widest})",
            remedy="lower optim.lora.rank, or train the weights without optim.lora",
        )


def _clear_cost(model: nn.Module) -> None:
    """Clears the model's cached :class:`models.flops.ModelCost`, which depends on the trainable parameters."""
    model.__dict__.pop("cost", None)
