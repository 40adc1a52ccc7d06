"""The interface between a task and the engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal, Protocol

from torch import Tensor, nn

from batches.base import MicroBatch
from batches.losses import Losses, Work

Encoder = Literal["vision", "text", "fusion"]


class TaskModel(Protocol):
    """The module of a task, before ranks share it."""

    @property
    def chunks(self) -> int | Literal["step"]:
        """Micro-batches of a rank that a loss spans, in a step; 1: none does; "step": all."""

    def spanning(self, micro_batches: Sequence[Any], before: Callable[[int], None]) -> AbstractContextManager[None]:
        """A context in which the forward passes of these micro-batches, in their order, give losses that span them all; called
        only where losses span more than one micro-batch.

        ``before(i)`` seeds what micro-batch i draws; it is called here, and has to be called before its forward pass.
        """

    def __call__(self, batch: Any) -> Losses:
        """All losses of a micro-batch, as sums over examples or tokens."""

    def counts(self, batch: Any) -> dict[str, Tensor]:
        """The divisor of each loss, a scalar by the loss's name, equal names on every rank. ``batch`` is on the host: counting
        runs before the forward pass."""

    def work(self, batch: Any) -> Work:
        """Size and FLOPs of a step on a micro-batch; ``batch`` is on the host."""


class TrainingData(Protocol):
    """Training data as far as the plan of a run depends on them. ``records_per_batch``: records of the leading stream that a rank
    reads for a micro-batch."""

    @property
    def records_per_batch(self) -> int: ...

    @property
    def micro_batch(self) -> MicroBatch:
        """Size of a micro-batch; read only if the config sets ``train.global_batch``."""

    def check_ranks(self, ranks: int) -> None:
        """Raise a :class:`UserError` for a number of ranks that the data cannot be dealt to."""


class Loader(TrainingData, Protocol):
    """Micro-batches as a function of their number, so that a resumed run equals an uninterrupted one.

    ``examples_per_batch``: examples of a micro-batch, all streams together. ``epoch_size``: records of the leading stream in an
    epoch. ``stream_sizes``: records of each stream, the leading one first.
    """

    examples_per_batch: int
    stream_sizes: dict[str, int]

    @property
    def epoch_size(self) -> int: ...

    def batches(self, consumed: int, count: int) -> Iterator[Any]:
        """The next ``count`` micro-batches of this rank, after all ranks together have used ``consumed``."""


class Task(Protocol):
    """A model with its data. ``fresh``: names of the parameters that train at ``lr * lr_mult``."""

    model: nn.Module
    fresh: set[str]
    about: Mapping[str, Any]
    """Entries of the header of the task's weight files."""

    selects: str | None
    """The metric of :meth:`validate` that selects the best weights, higher is better; None: the last weights are the result."""

    validated: Sequence[Mapping[str, Any]]
    """Some predictions of the last :meth:`validate`, of the same examples each time, as JSON objects; none is kept: empty."""

    def train_loader(self) -> Loader:
        """The training data of this rank."""

    def validate(self) -> dict[str, float]:
        """Metrics on the validation split, equal on every rank. All ranks call this, with the model in training mode."""
