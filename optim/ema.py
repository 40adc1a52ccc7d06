"""An exponential moving average (EMA) of the weights over the steps of a run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from utils.config import Config
from utils.distributed import local_part

CHUNK = 64 * 2**20
"""Elements of the weights that one update handles at a time: it needs a copy of them."""


class EmaConfig(Config):
    """Average of the weights over the steps: average = decay * average + (1 - decay) * weights, after each step."""

    decay: float = Field(0.9999, ge=0, lt=1, description="share of the earlier average that stays in a step")
    warmup: bool = Field(True, description="decay by (1 + t) / (10 + t) in step t, from 0, while that is lower")

    def decay_at(self, step: int) -> float:
        """The decay in a step, counted from 0."""
        return min(self.decay, (1 + step) / (10 + step)) if self.warmup else self.decay


class WeightAverage:
    """The average of ``weights``, which starts at their present values.

    It lies on their device, in their dtype, which is float32 in every precision of a run. Every rank computes it from the weights
    that it holds, so that nothing is exchanged. The buffers of our models are constants, and have no average.

    Args:
        weights: those that ever train.
        config: None: there is no average, and everything here does nothing.
    """

    def __init__(self, weights: Iterable[nn.Parameter], config: EmaConfig | None):
        self.config = config
        self._weights = [] if config is None else list(weights)
        self.tensors = [weight.detach().clone() for weight in self._weights]
        self._other = {id(weight): tensor for weight, tensor in zip(self._weights, self.tensors, strict=True)}
        self._chunks = list(
            _chunks([local_part(each.detach()) for each in self._weights], list(map(local_part, self.tensors)))
        )
        self._is_in_model = False

    @property
    def about(self) -> dict[str, Any]:
        """What the header of a file with averaged weights says of them; empty without an average."""
        return {} if self.config is None else {"ema": self.config.model_dump()}

    @torch.no_grad()
    def update(self, step: int, skipped: Tensor) -> None:
        """Add the weights after step ``step``, from 0, to the average, unless ``skipped`` (a bool on the device): the host does
        not wait for it."""
        if self.config is None:
            return
        assert not self._is_in_model, "the model holds the average, not the weights that train"
        share = torch.where(skipped, 0.0, 1 - self.config.decay_at(step))
        for weights, averages in self._chunks:
            changes = torch._foreach_sub(weights, averages)
            torch._foreach_mul_(changes, share)
            torch._foreach_add_(averages, changes)

    @contextmanager
    def in_model(self) -> Iterator[None]:
        """Inside, the model has the averaged weights."""
        self.put_in_model()
        try:
            yield
        finally:
            self._exchange(False)

    def put_in_model(self) -> None:
        """Give the model the averaged weights, for good: it does not train any more."""
        self._exchange(True)

    def states(self, model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor] | None]:
        """The state of ``model`` with the averaged weights, and with those that train; without an average, its state and None."""
        present = dict(model.state_dict(keep_vars=True))
        if self.config is None:
            return present, None
        other = {name: self._other.get(id(tensor), tensor) for name, tensor in present.items()}
        return (present, other) if self._is_in_model else (other, present)

    @torch.no_grad()
    def _exchange(self, averaged: bool) -> None:
        # Contents, not tensors: DDP, the optimiser and recorded graphs hold the parameters by their addresses.
        if averaged is self._is_in_model:
            return
        for weight, average in zip(self._weights, self.tensors, strict=True):
            held = weight.clone()
            weight.copy_(average)
            average.copy_(held)
        self._is_in_model = averaged


def _chunks(weights: list[Tensor], averages: list[Tensor]) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """Weights and averages in lists of at most :data:`CHUNK` elements, or of one tensor."""
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
