"""The interface between a task and the engine."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any, Literal, Protocol

from torch import Tensor, nn

from utils.batch import Losses, MicroBatch, Work

Encoder = Literal["vision", "text", "fusion"]


class TaskModel(Protocol):
    """The module of a task, before DDP wraps it."""

    def __call__(self, batch: Any) -> Losses:
        """All losses of a micro-batch, as sums."""

    def set_recompute(self, parts: Collection[Encoder]) -> None:
        """Keep no activations of these encoders for the backward pass."""

    def compile_encoders(self, *, mode: str | None) -> None:
        """Compile the encoders, in one of ``torch.compile``'s modes."""

    def counts(self, batch: Any) -> dict[str, Tensor]:
        """The divisor of each sum, counted on the host before the forward pass: ``batch`` is not yet on the device. The same
        names on every rank."""

    def work(self, batch: Any) -> Work:
        """Size and FLOPs of a step on a micro-batch, counted on the host: ``batch`` is not yet on the device."""


class SizesMicroBatch(Protocol):
    """Data that know the size of their micro-batches."""

    @property
    def micro_batch(self) -> MicroBatch: ...


class Loader(SizesMicroBatch, Protocol):
    """Micro-batches by number, so that a resumed run repeats the uninterrupted one.

    ``examples_per_batch`` rows of a micro-batch; ``records_per_batch`` records that it takes of the ``epoch_size`` of an epoch.
    """

    examples_per_batch: int
    records_per_batch: int

    @property
    def epoch_size(self) -> int: ...

    def batches(self, consumed: int, count: int) -> Iterator[Any]:
        """``count`` micro-batches of this rank, after ``consumed`` were used by all ranks together."""


class Task(Protocol):
    """A model with its data. ``fresh`` names the parameters that train at ``lr * lr_mult``."""

    model: nn.Module
    fresh: set[str]

    selects: str | None
    """The metric of :meth:`validate` that picks the best weights, higher is better; None: the last ones are the result."""

    def train_loader(self) -> Loader:
        """The training data of this rank."""

    def validate(self) -> dict[str, float]:
        """Metrics on the validation split, the same on every rank; called on all of them, with the model in training mode."""
