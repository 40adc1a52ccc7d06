"""The one loop in which records become training examples, for every stream and task: nothing in a record ends a run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from batches.base import BrokenRecord, RecordCount
from dataset.records.broken import broken_record
from dataset.workers import reading

E = TypeVar("E")


class Account:
    """Account of the records of one batch: ``usable``, the places of those that examples were made of; ``broken``, all that
    could not be used; ``counts``, of each stream."""

    def __init__(self) -> None:
        self.usable: list[str] = []
        self.broken: list[BrokenRecord] = []
        self.counts: dict[str, RecordCount] = {}

    def examples(
        self,
        stream: str,
        draws: Iterable[tuple[int, np.random.Generator]],
        example: Callable[[int, np.random.Generator], E | None],
        place: Callable[[int], str],
    ) -> list[E | None]:
        """An example of each record that is drawn, by its index and random numbers; None where there is none.

        Args:
            stream: whose records they are.
            draws: the indexes, each with a generator of its own.
            example: makes one; what it raises is a broken record, and None is one whose parts it has reported itself.
            place: where a record lies.

        Raises:
            UserError: as ``example``: no record is to blame.
        """
        examples: list[E | None] = []
        note = reading.get(None)
        for index, rng in draws:
            made = None
            if note is not None:
                note(place(index))
            try:
                made = example(index, rng)
            except Exception as error:
                self.broken.append(broken_record(error, partial(place, index)))
            if made is not None:
                self.usable.append(place(index))
            self._count(stream, read=1, usable=int(made is not None))
            examples.append(made)
        return examples

    def reject(self, stream: str, error: Exception, place: str) -> None:
        """A record that seemed usable is broken after all."""
        self.broken.append(broken_record(error, lambda: place))
        self.usable.remove(place)
        self._count(stream, usable=-1)

    def fields(self) -> dict[str, Any]:
        """The account as fields of :class:`~batches.base.Batch`."""
        return {"records": tuple(self.usable), "broken": tuple(self.broken), "counts": self.counts}

    def _count(self, stream: str, read: int = 0, usable: int = 0) -> None:
        before = self.counts.get(stream, RecordCount(0, 0))
        self.counts[stream] = RecordCount(before.read + read, before.usable + usable)


def filled(examples: Sequence[E | None], filler: Callable[[], E]) -> tuple[list[E], Tensor]:
    """The examples with fillers for those that are None, and which count, (N,) bool."""
    rows = [filler() if example is None else example for example in examples]
    return rows, torch.tensor([example is not None for example in examples])
