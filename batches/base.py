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


class MicroBatch(NamedTuple):
    """Size of the micro-batch on one rank: the number of examples of the main stream, and the config key that sets this
    number."""

    key: str
    size: int


@dataclass(frozen=True)
class BrokenRecord:
    """A record that could not be used: the kind of fault (``bad json``, ``missing key``, …), its ``file:line``, and a message.
    ``traceback`` is set if the exception was unexpected."""

    kind: str
    location: str
    message: str
    traceback: str = ""


class RecordCount(NamedTuple):
    """Number of records that were ``read`` from a stream for a batch, and number of these that became examples (``usable``)."""

    read: int
    usable: int


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Base class of all micro-batches, which records where the examples come from.

    ``records``: the location of the record of each example; ``broken``: records that were skipped while building the batch;
    ``counts``: how many records of each stream were read.
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
    """Returns a copy of a batch, or of a part of one, in which every tensor is replaced by ``function(tensor)``."""
    if isinstance(value, Tensor):
        return function(value)
    if is_dataclass(value) and not isinstance(value, type):
        changed = {field.name: map_tensors(getattr(value, field.name), function) for field in fields(value)}
        return replace(value, **changed)
    return value
