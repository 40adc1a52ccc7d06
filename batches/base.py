"""Base class of all micro-batches, and helpers that work on any of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

B = TypeVar("B")

TokenIds = Sequence[Sequence[int]]

IGNORE = -100
"""Label of a position that every loss ignores."""


@dataclass(frozen=True)
class BrokenRecord:
    """A record, or a part of it, that could not be used.

    Attributes:
        place: location of the record: file and line, tar and member, Parquet file and row, or file and index.
        reason: type of the fault, such as ``bad json`` or ``missing key``.
        detail: what is wrong.
        traceback: the traceback of an unexpected exception, otherwise "".
    """

    place: str
    reason: str
    detail: str
    traceback: str = ""

    def __str__(self) -> str:
        return f"{self.place}: {self.reason}: {self.detail}"

    def to_values(self) -> dict[str, str]:
        """Returns the place, the reason and the detail, as every file that lists broken records names them."""
        return {"place": self.place, "reason": self.reason, "detail": self.detail}


class RecordCount(NamedTuple):
    """Number of records that were read from a stream (a type of training data) for a batch, how many of them became examples, and
    how many are broken, at least in part."""

    read: int
    usable: int
    broken: int = 0


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Base class of all micro-batches. It stores where the examples come from.

    Attributes:
        records: locations of the usable records of all streams.
        broken: records, and parts of records, that were skipped while the batch was built.
        counts: number of records that were read, by stream.
    """

    records: tuple[str, ...] = ()
    broken: tuple[BrokenRecord, ...] = ()
    counts: Mapping[str, RecordCount] = field(default_factory=dict)

    @property
    def read(self) -> int:
        """Number of records that were read, including broken ones."""
        return sum(count.read for count in self.counts.values())

    def pin_memory(self: B) -> B:
        """Returns a copy of the batch in page-locked memory (called by torch's ``DataLoader``)."""
        return map_tensors(self, lambda tensor: tensor.pin_memory())


def to_device(batch: B, device: torch.device) -> B:
    """Returns a copy of the batch with every tensor on ``device``. Copies from pinned memory do not block."""
    return map_tensors(batch, lambda tensor: tensor.to(device, non_blocking=True))


def map_tensors(value: Any, function: Any) -> Any:
    """Returns a copy of a batch, or of one of its fields, in which every tensor is replaced by ``function(tensor)``."""
    if isinstance(value, Tensor):
        return function(value)
    if is_dataclass(value) and not isinstance(value, type):
        changed = {field.name: map_tensors(getattr(value, field.name), function) for field in fields(value)}
        return replace(value, **changed)
    return value
