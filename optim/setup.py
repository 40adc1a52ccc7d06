"""How a model trains: which parts are frozen, which get adapters, which use gradient checkpointing, and how they are compiled.

The functions work on any model. A part is a direct child of the model and is found by its name. Encoders say what they support by
having the methods of :class:`EncoderBlocks`; a part without them can still be frozen.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from types import MethodType
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import nn

from optim.lora import PARTS, LoraConfig, inject_adapters
from utils.errors import UserError

OUTSIDE_BLOCKS = ("vision.frame_positions", "text.projection.", "decoder.word_head.", "decoder.embeddings.")
"""Prefixes of the names of parameters that are in a part but in none of its blocks. Fine-tuning initialises them at random, so
they train even if the part has adapters."""
COMPILATIONS = 64
"""Maximum number of compilations per function, which is more than a step has variants. Torch's own limit is 8."""


@runtime_checkable
class EncoderBlocks(Protocol):
    """An encoder, or a stack of blocks inside one, that supports gradient checkpointing, compiling and sharding."""

    @property
    def blocks_to_shard(self) -> Sequence[nn.Module]:
        """The blocks that run once in a micro-batch; see :mod:`engine.parallel.fsdp`."""

    def set_gradient_checkpointing(self, enabled: bool) -> None:
        """Recompute the blocks in the backward pass instead of storing their activations, or stop doing so."""

    def compile_blocks(self, **options: Any) -> None:
        """Compile the blocks with ``torch.compile``; the names of parameters stay the same."""


@runtime_checkable
class CallsProjections(Protocol):
    """A module whose blocks read the weights of some linear layers by default, instead of calling them."""

    def call_projections(self) -> None:
        """Make the blocks call all of their linear layers, so that adapters take part."""


@runtime_checkable
class HasLevels(Protocol):
    """A part of a model whose blocks run one after the other."""

    def levels_above(self) -> dict[str, int]:
        """Number of levels above each parameter: 0 after the last block, 1 in the last block, and so on."""


def levels_above(model: nn.Module) -> dict[str, int]:
    """Number of levels above each parameter, of the parts that have levels."""
    return {
        f"{part}.{name}": level
        for part, module in model.named_children()
        if isinstance(module, HasLevels)
        for name, level in module.levels_above().items()
    }


def encoders_in(module: nn.Module) -> Iterator[EncoderBlocks]:
    """All encoders in a module, itself included."""
    return (each for each in module.modules() if isinstance(each, EncoderBlocks))


def set_gradient_checkpointing(model: nn.Module, parts: Collection[str]) -> None:
    """Use gradient checkpointing in these parts and no others, which takes less memory and more time.

    Only the inputs of blocks and the keys and values for cross-attention are kept for the backward pass.

    Args:
        parts: any of "vision", "text", "fusion"; "fusion" includes an answer decoder.

    Raises:
        UserError: if an encoder does not support it.
    """
    for name, part in model.named_children():
        for encoder in encoders_in(part):
            encoder.set_gradient_checkpointing(("fusion" if name == "decoder" else name) in parts)


def compile_encoders(model: nn.Module, **options: Any) -> None:
    """Compile all encoders with ``torch.compile`` and these options.

    The code between them depends on numbers that only the host knows. Torch runs a function uncompiled after 8 compilations. This
    function raises the limit, since the fusion encoder has a variant for every stream and set of losses.
    """
    limits = torch._dynamo.config
    limits.recompile_limit = max(limits.recompile_limit, COMPILATIONS)
    for encoder in encoders_in(model):
        encoder.compile_blocks(**options)


def set_frozen(model: nn.Module, parts: Collection[str]) -> None:
    """Freeze these parts, and unfreeze all others that this function has frozen before.

    A frozen part has no gradients and stays in evaluation mode, so its states depend only on its inputs. Gradients still pass
    through it to parts that train. Parameters that were not trainable before freezing stay so after unfreezing.

    Args:
        parts: names of direct children, such as "vision", "text" (with the word table, also where heads read it) or "fusion".
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
    _recount(model)


def stay_in_evaluation_mode(module: nn.Module) -> None:
    """Put a module into evaluation mode (no dropout, no drop path) and keep it there whatever mode the model is set to."""
    module.eval()
    module.train = MethodType(_keep_mode, module)  # type: ignore[method-assign]


def _keep_mode(module: nn.Module, mode: bool = True) -> nn.Module:
    """Replaces the method ``train`` of a module that stays in evaluation mode."""
    return module


def add_adapters(model: nn.Module, config: LoraConfig, frozen: Collection[str] = ()) -> None:
    """Give the linear layers in the blocks of some parts low-rank adapters, which train in their place.

    Parameters outside the blocks (:data:`OUTSIDE_BLOCKS`) train as before; so do all parts without adapters.

    Args:
        config: names the parts; if it does not, all parts of the model that can have adapters get them.
        frozen: parts that never train, which get no adapters.

    Raises:
        UserError: if the model lacks a part that is named, nothing would train there, or the rank is not smaller than the
            rank of any weight.
    """
    present = [part for part in PARTS if hasattr(model, part)]
    if missing := [part for part in config.targets or () if part not in present]:
        raise UserError(
            f"optim.lora.targets: {missing[0]} is no part of this task's model, which has {', '.join(present)}"
        )
    targets = config.targets or [part for part in present if part not in frozen]
    layers: list[str] = []
    for part in targets:
        found = _layers_to_adapt(model, part, config.layers)
        if not found:
            raise UserError(f"optim.lora.targets: no linear layer of {part} trains in this run; leave it out")
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
    _recount(model)


def _layers_to_adapt(model: nn.Module, part: str, layers: str) -> list[str]:
    """Names of the trainable linear layers in the blocks of ``part``: all, or only the attention layers."""
    return [
        name
        for inner, module in model.get_submodule(part).named_modules()
        if isinstance(module, nn.Linear)
        and module.weight.requires_grad
        and not (name := f"{part}.{inner}").startswith(OUTSIDE_BLOCKS)
        and (layers == "all" or any("att" in step for step in inner.split(".")))
    ]


def _check_rank(model: nn.Module, rank: int, layers: Sequence[str]) -> None:
    """Raise a :class:`UserError` if adapters of this rank would be no smaller than any of the weights they replace."""
    sizes = {name: min(cast(nn.Linear, model.get_submodule(name)).weight.shape) for name in layers}
    widest = max(layers, key=sizes.__getitem__)
    if rank >= sizes[widest]:
        raise UserError(
            f"optim.lora.rank is {rank}, but no weight has a rank above {sizes[widest]} ({widest}); lower it, or train the "
            "weights"
        )


def _recount(model: nn.Module) -> None:
    """Clear the model's cached :class:`models.core.flops.ModelCost`, which depends on the parameters that train."""
    model.__dict__.pop("cost", None)
