"""The interface between a task and the engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal, Protocol

from torch import Tensor, nn

from batches.losses import Losses, Work
from engine.run_plan import TrainingData


class TaskModel(Protocol):
    """The model of a task, before it is wrapped or sharded."""

    @property
    def chunks(self) -> int | Literal["step"]:
        """Number of micro-batches of a rank over which a loss is computed. With 1, each micro-batch has separate losses; with
        "step", a loss covers all micro-batches of a step."""

    def spanning(self, micro_batches: Sequence[Any], seed: Callable[[int], None]) -> AbstractContextManager[None]:
        """Context in which the forward passes of these micro-batches, in order, return losses that cover all of the
        micro-batches. Used only if :attr:`chunks` is not 1.

        ``seed(i)`` seeds the random number generators for micro-batch i. This method calls it, and the caller must call it again
        before the forward pass of micro-batch i.
        """

    def __call__(self, batch: Any) -> Losses:
        """Returns all losses of a micro-batch, as sums over examples or tokens."""

    def counts(self, batch: Any) -> dict[str, Tensor]:
        """Returns the number by which each loss is divided, as scalar tensors by the name of the loss. The names must be equal on
        all ranks. ``batch`` is on the host, since counting happens before the forward pass."""

    def work(self, batch: Any) -> Work:
        """Returns the size and the FLOPs of a training step on a micro-batch. ``batch`` is on the host."""


class Loader(TrainingData, Protocol):
    """Yields micro-batches that depend only on their index, so that a resumed run equals an uninterrupted one.

    A stream is one type of training data. The leading stream is the one whose records are counted by epochs and batch sizes.

    Attributes:
        examples_per_batch: number of examples in a micro-batch, over all streams.
        stream_sizes: number of records of each stream. The leading stream comes first.
    """

    examples_per_batch: int
    stream_sizes: dict[str, int]

    @property
    def epoch_size(self) -> int:
        """Number of records of the leading stream in an epoch."""

    def batches(self, consumed: int, count: int) -> Iterator[Any]:
        """Yields the next ``count`` micro-batches of this rank, after all ranks together have consumed ``consumed``
        micro-batches."""


class Task(Protocol):
    """A model with its data."""

    model: nn.Module
    fresh: set[str]
    """Names of the parameters that train at ``lr * lr_mult``."""

    metadata: Mapping[str, Any]
    """Metadata for the header of the task's weight files."""

    selection_metric: str | None
    """Name of the metric of :meth:`validate` that selects the best weights; higher is better. If None, the task is never
    validated and the last weights are the result."""

    validation_predictions: Sequence[Mapping[str, Any]]
    """Predictions of the last :meth:`validate` for a few fixed examples, as JSON objects. Empty if no predictions are kept."""

    def train_loader(self) -> Loader:
        """Returns the training data of this rank."""

    def validate(self) -> dict[str, float]:
        """Returns the metrics on the validation split, equal on all ranks. All ranks must call this, with the model in training
        mode."""
