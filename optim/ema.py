"""An exponential moving average (EMA) of the weights over the steps of a run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from optim.config import EmaConfig
from utils.distributed import local_shard

CHUNK = 64 * 2**20
"""Maximum number of elements to update at a time, because an update needs a temporary copy of them."""


class WeightAverage:
    """The moving average of ``weights``, initialised with their current values.

    The average has the device and the dtype of the weights. The dtype is float32, whatever the precision of a run. Each rank
    averages the weights that it holds, without communication. Buffers are not averaged, because they are constants in our models.

    Args:
        weights: the parameters that train at some point in the run.
        config: the config of the average; if None, no average is kept and the methods have no effect.
    """

    def __init__(self, weights: Iterable[nn.Parameter], config: EmaConfig | None):
        self.config = config
        self._weights = [] if config is None else list(weights)
        self.tensors = [weight.detach().clone() for weight in self._weights]
        self._other = {id(weight): tensor for weight, tensor in zip(self._weights, self.tensors, strict=True)}
        self._chunks = list(
            _chunks([local_shard(each.detach()) for each in self._weights], list(map(local_shard, self.tensors)))
        )
        self._is_in_model = False

    @torch.no_grad()
    def update(self, step: int, skipped: Tensor) -> None:
        """Updates the average with the weights after a step.

        Args:
            step: the step, counted from 0.
            skipped: boolean scalar, True if the step was skipped. In this case, the average does not change. This is a tensor on
                the device, so that the host does not have to wait for its value.
        """
        if self.config is None:
            return
        assert not self._is_in_model, "the model contains the averaged weights, not the weights that train"
        rate = torch.where(skipped, 0.0, 1 - self.config.decay_at(step))
        for weights, averages in self._chunks:
            changes = torch._foreach_sub(weights, averages)
            torch._foreach_mul_(changes, rate)
            torch._foreach_add_(averages, changes)

    @contextmanager
    def in_model(self) -> Iterator[None]:
        """Context in which the model holds the averaged weights."""
        self.put_in_model()
        try:
            yield
        finally:
            self.put_in_model(averaged=False)

    @torch.no_grad()
    def put_in_model(self, averaged: bool = True) -> None:
        """Puts the averaged weights into the model or, if ``averaged`` is False, the weights that train."""
        if averaged is self._is_in_model:
            return
        # Exchange values rather than tensors, because DDP, the optimiser and CUDA graphs refer to the memory of the parameters.
        for weight, average in zip(self._weights, self.tensors, strict=True):
            previous = weight.clone()
            weight.copy_(average)
            average.copy_(previous)
        self._is_in_model = averaged

    def states(self, model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor] | None]:
        """Returns the state of ``model`` with averaged weights, and the state with unaveraged weights. If weights are not
        averaged, returns the only state and None."""
        current = dict(model.state_dict(keep_vars=True))
        if self.config is None:
            return current, None
        other = {name: self._other.get(id(tensor), tensor) for name, tensor in current.items()}
        return (current, other) if self._is_in_model else (other, current)


def _chunks(weights: list[Tensor], averages: list[Tensor]) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """Yields lists of weights and averages with at most :data:`CHUNK` elements, or with a single larger tensor."""
    chunk: tuple[list[Tensor], list[Tensor]] = ([], [])
    size = 0
    for weight, average in zip(weights, averages, strict=True):
        if chunk[0] and size + weight.numel() > CHUNK:
            yield chunk
            chunk, size = ([], []), 0
        chunk[0].append(weight)
        chunk[1].append(average)
        size += weight.numel()
    if chunk[0]:
        yield chunk
