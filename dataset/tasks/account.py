"""Counts the usable and broken records of a batch. A broken record never stops a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from batches.base import BrokenRecord, RecordCount
from dataset.records.broken import broken_record
from dataset.workers import reading

E = TypeVar("E")


class Reading(Generic[E]):
    """A record that is being read.

    Attributes:
        location: file and line, or shard and member.
        example: the example built from the record; None before it is built, or if the record cannot be used.
    """

    def __init__(self, location: str):
        self.location = location
        self.example: E | None = None


class Account:
    """Counts the records of one batch.

    Attributes:
        usable: locations of the records that became examples.
        broken: the records, and parts of records, that could not be used.
        counts: number of records read and used, by stream.
    """

    def __init__(self) -> None:
        self.usable: list[str] = []
        self.broken: list[BrokenRecord] = []
        self.counts: dict[str, RecordCount] = {}

    @contextmanager
    def record(self, stream: str, location: str) -> Iterator[Reading[Any]]:
        """Context manager that counts the record read inside it. An exception is swallowed, and the record is counted as broken.

        Args:
            stream: stream of the record.
            location: location of the record, as precisely as it is known before the record is read. It is reported if the worker
                hangs or is killed.

        Raises:
            UserError: if one is raised inside the context, because records do not cause UserErrors.
        """
        if (note := reading.get(None)) is not None:
            note(location)
        record = Reading[Any](location)
        try:
            yield record
        except Exception as error:
            record.example = None
            self.broken.append(broken_record(error, record.location))
        if record.example is not None:
            self.usable.append(record.location)
        self._count(stream, read=1, usable=int(record.example is not None))

    def reject(self, stream: str, error: Exception, location: str) -> None:
        """Counts a record as broken that was counted as usable before."""
        self.broken.append(broken_record(error, location))
        self.usable.remove(location)
        self._count(stream, usable=-1)

    def fields(self) -> dict[str, Any]:
        """Returns the counts as fields of :class:`~batches.base.Batch`."""
        return {"records": tuple(self.usable), "broken": tuple(self.broken), "counts": self.counts}

    def _count(self, stream: str, read: int = 0, usable: int = 0) -> None:
        before = self.counts.get(stream, RecordCount(0, 0))
        self.counts[stream] = RecordCount(before.read + read, before.usable + usable)


def filled(examples: Sequence[E | None], filler: Callable[[], E]) -> tuple[list[E], Tensor]:
    """Returns the examples, with None replaced by fillers, and a mask (N,) that is False for fillers."""
    rows = [filler() if example is None else example for example in examples]
    return rows, torch.tensor([example is not None for example in examples])
