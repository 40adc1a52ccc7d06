"""Which parameters the losses of pre-training train, according to their declarations, and what happens to the others."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from models.pretraining.streams import Stream


def trained_parameters(model: nn.Module, losses: Iterable[tuple[Stream[Any], Collection[str]]]) -> set[str]:
    """Returns the names of the parameters of a model that ``losses`` train. ``losses`` contains streams, each with the names of
    its losses."""
    modules = {module for stream, names in losses for module in stream.trained_by(names)}
    return {name for name, _ in model.named_parameters() if any(includes(module, name) for module in modules)}


def freeze_untrained(model: nn.Module, all_streams: Collection[Stream[Any]]) -> None:
    """Freezes the parameters that are trained only by losses that the run does not compute. They then need no gradients
    and no optimiser states, and DDP does not wait for them. ``all_streams`` includes the streams that the run does not use.

    Raises:
        ValueError: if there is a parameter that no loss of any stream declares to train.
    """
    declared = trained_parameters(model, ((stream, [loss.name for loss in stream.declared]) for stream in all_streams))
    trained = trained_parameters(model, ((stream, stream.weights) for stream in all_streams))
    for name, parameter in model.named_parameters():
        if name not in declared:
            raise ValueError(
                f"{name}: no loss declares that it trains this parameter; add it to `trains` of a loss in "
                "models/pretraining/streams.py"
            )
        if name not in trained:
            parameter.requires_grad_(False)


class ZeroLoss:
    """Makes the loss that replaces the losses that a step does not compute. It is 0 and depends on the parameters that only
    these losses train, because DDP waits for the gradient of every parameter in every step.

    Args:
        streams: the streams of the run.
    """

    def __init__(self, streams: Mapping[str, Stream[Any]]):
        self.streams = streams
        self._untrained: dict[tuple[tuple[str, ...], ...], list[nn.Parameter]] = {}
        """The parameters by the losses of a step, because iterating over all parameters takes milliseconds."""

    def __call__(self, model: nn.Module, requested: Mapping[str, Collection[str]]) -> Tensor:
        """``requested`` contains the names of the losses that the step computes, by stream."""
        key = tuple((name, *losses) for name, losses in requested.items())
        if key not in self._untrained:
            streams = {name: self.streams[name] for name in requested}
            self._untrained[key] = only_in_other_steps(model, streams, requested)
        return zero_loss(self._untrained[key], next(model.parameters()).device)


def only_in_other_steps(
    model: nn.Module, streams: Mapping[str, Stream[Any]], requested: Mapping[str, Collection[str]]
) -> list[nn.Parameter]:
    """The parameters that the ``requested`` losses of these streams do not train, but that the streams train in other steps. All
    batches of a run contain the same streams."""
    trained = trained_parameters(model, ((stream, requested[name]) for name, stream in streams.items()))
    in_other_steps = trained_parameters(model, ((stream, stream.weights) for stream in streams.values())) - trained
    return [parameter for name, parameter in model.named_parameters() if name in in_other_steps]


def zero_loss(parameters: Sequence[nn.Parameter], device: torch.device) -> Tensor:
    """Returns a zero on ``device`` that depends on all ``parameters``, except sharded ones, since FSDP2 does not wait for
    gradients."""
    zero = torch.zeros((), device=device)
    return sum((0 * parameter.sum() for parameter in parameters if not isinstance(parameter, DTensor)), zero)


def includes(module: str, parameter: str) -> bool:
    """True if ``module``, a name as in :attr:`Loss.trains`, contains this parameter."""
    pattern = module.split(".")
    found = parameter.split(".")[: len(pattern)]
    return len(found) == len(pattern) and all(each in ("*", name) for each, name in zip(pattern, found, strict=True))
