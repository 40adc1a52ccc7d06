"""What all micro-batches have, and what is done with any of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

B = TypeVar("B")

TokenIds = Sequence[Sequence[int]]

IGNORE = -100
"""Label of a position that no loss counts."""


class MicroBatch(NamedTuple):
    """The size of one rank's micro-batch: examples of the leading stream, and the config key that sets their number."""

    key: str
    size: int


@dataclass(frozen=True)
class BrokenRecord:
    """A record that could not be used: the kind of its fault (``bad json``, ``missing key``, …), ``file:line``, and a message.
    ``traceback``: of an unforeseen exception."""

    kind: str
    place: str
    message: str
    traceback: str = ""


class RecordCount(NamedTuple):
    """Records of a stream that were ``read`` for a batch, and those of them that an example was made of."""

    read: int
    usable: int


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Base of all micro-batches: where their examples come from.

    ``records``: the record of each example; ``broken``: records that were skipped while the batch was made; ``counts``: how many
    records of each stream were read.
    """

    records: tuple[str, ...] = ()
    broken: tuple[BrokenRecord, ...] = ()
    counts: Mapping[str, RecordCount] = field(default_factory=dict)

    @property
    def read(self) -> int:
        """Number of records that were read, broken ones among them."""
        return sum(count.read for count in self.counts.values())

    def pin_memory(self: B) -> B:
        """A copy of the batch in page-locked memory (called by torch's ``DataLoader``)."""
        return map_tensors(self, lambda tensor: tensor.pin_memory())


def to_device(batch: B, device: torch.device) -> B:
    """A copy of the batch with every tensor on ``device``. Copies from pinned memory do not block."""
    return map_tensors(batch, lambda tensor: tensor.to(device, non_blocking=True))


def map_tensors(value: Any, function: Any) -> Any:
    """A copy of a batch, or of a part of it, whose tensors are replaced by ``function(tensor)``."""
    if isinstance(value, Tensor):
        return function(value)
    if is_dataclass(value) and not isinstance(value, type):
        changed = {field.name: map_tensors(getattr(value, field.name), function) for field in fields(value)}
        return replace(value, **changed)
    return value
