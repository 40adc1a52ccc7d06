"""The way of a record, from its number in a run to the rows of a batch.

Every stream of records takes the same steps, in pre-training and in fine-tuning:

1. number: for micro-batch u, the order of the stream lists the numbers of the records (:mod:`dataset.shards.samplers`);
2. location: the place of each record is noted, to name a record that is broken, or at which reading hangs. For a tar, the name of
   the member is known only after its header has been read (``exact_location``);
3. read: the record is read from a shard (:class:`~dataset.shards.readers.Shards`), or is a row of an annotation file that was
   read and parsed at the start (:func:`~dataset.formats.annotations.parse_rows`);
4. parse, augment, encode: the stream makes an example of the record. It parses the values, chooses the texts, opens the image,
   augments it, and encodes the texts. The random numbers depend only on the seed, the stream, the epoch, and the record's
   position in the epoch;
5. collate: the stream puts the examples into one batch.

:meth:`RecordStream.examples` takes the steps up to the examples. The streams themselves (:mod:`dataset.tasks`) say how an example
is made, and how examples are collated. Whatever is wrong with a record is raised as a
:class:`~dataset.broken.BrokenRecordError` without a location; whoever reads the record adds it, here :class:`Account`.

For evaluation, :func:`held_out_records` reads each record once; a broken record ends the run. Code that looks at a sample of the
records, or copies all of them, uses :func:`readable_records`, which skips the broken ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from batches.base import BrokenRecord, RecordCount
from dataset.broken import broken_record, held_out_error
from dataset.shards.samplers import Order, sample_rng
from dataset.shards.weights import Weights
from dataset.workers import reading
from utils.errors import UserError

E = TypeVar("E")
R_co = TypeVar("R_co", bound="Located", covariant=True)
R = TypeVar("R", bound="Located")
T = TypeVar("T")


class Located(Protocol):
    """A record that knows its location, such as file and line."""

    @property
    def location(self) -> str: ...


class Records(Protocol[R_co]):
    """Numbered records: the records of shards (:class:`~dataset.shards.readers.Shards`), or :class:`RecordsInMemory`.

    Attributes:
        prefetches: True if :meth:`prefetch` has any effect.
    """

    prefetches: bool

    def __len__(self) -> int: ...

    def location(self, number: int) -> str:
        """Returns the location of a record as precisely as it is known before the record is read."""
        ...

    def exact_location(self, number: int) -> str:
        """Returns the location of a record. This may need to read the record's shard."""
        ...

    def prefetch(self, number: int) -> None:
        """Begins to fetch a record that will be read later."""
        ...

    def read(self, number: int) -> R_co:
        """Reads a record.

        Raises:
            BrokenRecordError: if the record cannot be read.
            UserError: if no record can be read, because a file was removed or changed.
        """
        ...


class Table(Protocol[R_co]):
    """The rows of an annotation file, in a list, or in columns from which a row is made when it is accessed."""

    def __len__(self) -> int: ...

    def __getitem__(self, row: int, /) -> R_co: ...


class RecordsInMemory(Generic[R]):
    """The rows of an annotation file as numbered records (:class:`Records`)."""

    prefetches = False

    def __init__(self, rows: Table[R]):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def location(self, number: int) -> str:
        return self.rows[number].location

    exact_location = location

    def prefetch(self, number: int) -> None:
        pass

    def read(self, number: int) -> R:
        return self.rows[number]


class RecordStream(Generic[R]):
    """The records of a stream, in the order in which training reads them.

    Args:
        records: the records.
        order: order of the records. With ``weights``, the order of their slots; a record has a slot for each time it is read in
            an epoch.
        name: name of the stream, which makes its random numbers independent of other streams.
        seed: seed of the run.
        weights: how many times each record is read per epoch; if None, every record is read once.
    """

    def __init__(self, records: Records[R], order: Order, *, name: str, seed: int, weights: Weights | None = None):
        self.records, self.order, self.name, self.seed, self.weights = records, order, name, seed, weights
        self._started_lanes: set[int] = set()

    def __len__(self) -> int:
        """Returns the number of examples per epoch."""
        return len(self.records if self.weights is None else self.weights)

    def examples(
        self, number: int, account: Account, make: Callable[[R, np.random.Generator], E | None]
    ) -> list[E | None]:
        """Reads the records of micro-batch ``number``, and makes an example of each.

        Args:
            number: number of the micro-batch, counted over all ranks.
            account: counts the records.
            make: parses, augments and encodes a record. If it raises anything other than UserError, the record is counted as
                broken. It returns None if it has already added the faults of all parts of the record to ``account``.

        Returns:
            An example for each record, or None if the record cannot be used.
        """
        if self.records.prefetches:
            self._prefetch(number)
        examples: list[E | None] = []
        for index, rng in self.samples(number):
            account.begin(self.records.location(index))
            example = None
            try:
                example = make(self._read(index, account), rng)
            except Exception as error:
                account.add_broken(error)
            account.count(self.name, usable=example is not None)
            examples.append(example)
        return examples

    def _read(self, index: int, account: Account) -> R:
        try:
            record = self.records.read(index)
        except UserError:
            raise
        except Exception:
            account.location = self.records.exact_location(index)
            raise
        account.location = record.location
        return record

    def samples(self, number: int) -> Iterator[tuple[int, np.random.Generator]]:
        """Yields the index of each record of micro-batch ``number``, and the generator for its example."""
        for epoch, slot in self.order.batch(number):
            # Seeded by slot, so that a record that is read twice in an epoch is augmented differently each time.
            yield self._index(epoch, slot), sample_rng(self.seed, self.name, epoch, slot)

    def _index(self, epoch: int, slot: int) -> int:
        return slot if self.weights is None else self.weights.record(epoch, slot)

    def _prefetch(self, number: int) -> None:
        lane = self.order.lane(number)
        for later in self.order.to_prefetch(number, first=lane not in self._started_lanes):
            for epoch, slot in self.order.batch(later):
                self.records.prefetch(self._index(epoch, slot))
        self._started_lanes.add(lane)


def held_out_records(
    numbers: Iterable[int],
    read: Callable[[int], T],
    location: Callable[[int], str],
    exact_location: Callable[[int], str] | None = None,
) -> Iterator[T]:
    """Reads records of a held-out set, each of them once, without an order, augmentation or an account.

    Args:
        numbers: numbers of the records.
        read: reads and parses the record with a number.
        location: returns the location of a record as precisely as it is known before the record is read.
        exact_location: returns the location of a broken record; if None, ``location`` does.

    Yields:
        The results of ``read``.

    Raises:
        UserError: for the first broken record. Metrics on an incomplete held-out set would not be comparable.
    """
    for number in numbers:
        _note(location(number))
        try:
            record = read(number)
        except Exception as error:
            raise held_out_error(error, (exact_location or location)(number)) from None
        yield record


def readable_records(
    records: Records[R],
    numbers: Iterable[int],
    parse: Callable[[R], T],
    on_broken: Callable[[BrokenRecord], object] | None = None,
) -> Iterator[T]:
    """Reads records outside training, for example to count something in a sample of them. Broken records are skipped.

    Args:
        records: the records.
        numbers: numbers of the records to read.
        parse: parses a record.
        on_broken: function that gets the broken records; None if training or another check reports them.

    Yields:
        The results of ``parse``.
    """
    for number in numbers:
        try:
            parsed = parse(records.read(number))
        except Exception as error:
            broken = broken_record(error, records.exact_location(number))
            if on_broken is not None:
                on_broken(broken)
            continue
        yield parsed


def _note(location: str) -> None:
    """Notes that the record at a location is read next. In a worker process, the location is reported if the worker hangs or is
    killed."""
    if (note := reading.get(None)) is not None:
        note(location)


class Account:
    """Counts the records of one batch, and lists the broken ones. A single broken record never stops a run.

    Attributes:
        location: location of the record that is being read.
        usable: locations of the records that became examples.
        broken: the records, and parts of records, that could not be used.
        counts: number of records read and used, by stream.
    """

    def __init__(self) -> None:
        self.location = ""
        self._broken_before = 0
        self.usable: list[str] = []
        self.broken: list[BrokenRecord] = []
        self.counts: dict[str, RecordCount] = {}

    def begin(self, location: str) -> None:
        """Notes that the record at a location is read next."""
        self.location, self._broken_before = location, len(self.broken)
        _note(location)

    def add_broken(self, error: Exception) -> None:
        """Adds the fault of the record that is being read, or of a part of it.

        Raises:
            UserError: ``error`` itself if it is a UserError, because records do not cause UserErrors.
        """
        self.broken.append(broken_record(error, self.location))

    def count(self, stream: str, *, usable: bool) -> None:
        """Counts the record that was read."""
        if usable:
            self.usable.append(self.location)
        read, before, broken = self.counts.get(stream, RecordCount(0, 0, 0))
        is_broken = len(self.broken) > self._broken_before
        self.counts[stream] = RecordCount(read + 1, before + usable, broken + is_broken)

    def fields(self) -> dict[str, Any]:
        """Returns the counts as fields of :class:`~batches.base.Batch`."""
        return {"records": tuple(self.usable), "broken": tuple(self.broken), "counts": self.counts}


def filled(examples: Sequence[E | None], filler: Callable[[], E]) -> tuple[list[E], Tensor]:
    """Returns the examples, with None replaced by fillers, and a mask (N,) that is False for fillers."""
    rows = [filler() if example is None else example for example in examples]
    return rows, torch.tensor([example is not None for example in examples])
