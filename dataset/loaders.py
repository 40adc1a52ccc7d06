"""Loads the batches of a run with worker processes, resumes at any micro-batch, and counts broken records."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Protocol

from batches import BatchSize
from batches.base import Batch, BrokenRecord
from dataset.broken import remedy_for
from dataset.config import LoadingConfig
from dataset.workers import in_workers
from utils.errors import UserError
from utils.events import BrokenReason, CountedRecords, SkippedRecord

logger = logging.getLogger(__name__)

_MIN_RECORDS = 1000
_FEW = 8
"""If too many records are broken and at least this number of records of one stream was read, all of them broken, the error names
that stream."""
_FIRST = 100
"""The run stops if the first records of a stream, up to this number, are all broken."""


class BrokenRecordLog:
    """Counts broken records by reason, logs each reason once, and stops a run that has too many.

    Args:
        max_broken: maximum fraction of the records read that may be broken.
        stream_sizes: number of records of each stream. The fraction is checked after 1000 records, or after all records if there
            are fewer.
    """

    def __init__(self, max_broken: float, stream_sizes: Mapping[str, int]):
        self.max_broken, self.stream_sizes = max_broken, stream_sizes
        self.enough = min(sum(stream_sizes.values()), _MIN_RECORDS)
        self.read = 0
        self.unusable: dict[str, int] = {}
        """Number of records read from each stream without a usable record so far."""
        self._usable: set[str] = set()
        self.broken_records = 0
        self.reasons: Counter[str] = Counter()
        self.first: dict[str, BrokenRecord] = {}

    def add(self, batch: Batch) -> None:
        """Counts the records of a batch.

        In the fraction of broken records, a record counts once, even if several of its parts are broken. In the counts by reason,
        each broken part counts.

        Raises:
            UserError: if the fraction is exceeded, or if the first 100 records of a stream are all broken. The message contains
                the summary.
        """
        self.read += batch.read
        for stream, count in batch.counts.items():
            if stream in self._usable or count.usable:
                self._usable.add(stream)
                self.unusable.pop(stream, None)
            else:
                self.unusable[stream] = self.unusable.get(stream, 0) + count.read
        self.broken_records += sum(count.broken for count in batch.counts.values())
        for broken in batch.broken:
            self.reasons[broken.reason] += 1
            if broken.reason not in self.first:
                self.first[broken.reason] = broken
                logger.warning(SkippedRecord(location=broken.place, kind=broken.reason, message=broken.detail))
                if broken.traceback:
                    logger.warning("%s at %s:\n%s", broken.reason, broken.place, broken.traceback)
        for stream, read in self.unusable.items():
            if read >= min(self.stream_sizes[stream], _FIRST):
                raise self.none_usable(stream)
        if self.read >= self.enough:
            self._check_fraction()

    def none_usable(self, stream: str) -> UserError:
        """Returns the error for a stream whose records are all broken."""
        return UserError(
            f"none of the first {self.unusable[stream]} records of {stream} can be used; broken so far: "
            f"{self.summary().listed()}",
            remedy="fix them, or the paths in the data section",
        )

    def finish(self) -> CountedRecords:
        """Returns the summary at the end of a run, and checks the fraction even if the run was short.

        Raises:
            UserError: if the fraction is exceeded.
        """
        self._check_fraction()
        return self.summary()

    def summary(self) -> CountedRecords:
        """Returns the number of records that were read, and the broken records by reason, each with its first location."""
        reasons = [
            BrokenReason(reason=reason, count=count, place=self.first[reason].place, detail=self.first[reason].detail)
            for reason, count in self.reasons.most_common()
        ]
        return CountedRecords(read=self.read, broken=self.broken_records, reasons=reasons)

    def _check_fraction(self) -> None:
        if self.broken_records > self.max_broken * self.read:
            for stream, read in self.unusable.items():
                if read >= min(
                    self.stream_sizes[stream], _FEW
                ):  # otherwise, other streams would hide that all records of this stream are broken
                    raise self.none_usable(stream)
            limit = f"more than data.max_broken = {100 * self.max_broken:.3g}%"
            tolerated = "data.max_broken" if self.broken_records <= self.read / 2 else None
            found = self.summary()
            raise UserError(f"{found.share()}, {limit}: {found.listed()}", remedy=remedy_for(self.reasons, tolerated))


class BatchMaker(Protocol):
    """Builds micro-batch u of a run as a function of u alone.

    Attributes:
        stream_sizes: number of records of each stream; the leading stream comes first.
        examples_per_batch: number of examples in a micro-batch, over all streams.
        records_per_batch: number of records of the leading stream that are read for a micro-batch.
    """

    stream_sizes: dict[str, int]
    examples_per_batch: int
    records_per_batch: int

    def make(self, number: int) -> Batch:
        """Builds micro-batch ``number``, counted over all ranks."""
        ...


class BatchLoader:
    """Loads the micro-batches of one rank with worker processes.

    Micro-batch u does not depend on the process that makes it, and a rank takes the micro-batches
    ``consumed + k * world_size + rank``. Batches therefore do not depend on the number of workers. A run that is resumed after
    ``consumed`` micro-batches (over all ranks) reads the same batches as an uninterrupted run, even on a different number of
    ranks.

    Args:
        maker: makes the batches.
        config: settings for workers, and the maximum fraction of broken records.
        rank: rank of this process.
        world_size: number of processes that share the data.
    """

    def __init__(self, maker: BatchMaker, config: LoadingConfig, *, rank: int = 0, world_size: int = 1):
        self.maker, self.config, self.rank, self.world_size = maker, config, rank, world_size
        self.stream_sizes = maker.stream_sizes
        self.examples_per_batch = maker.examples_per_batch
        self.records_per_batch = maker.records_per_batch
        self.broken = BrokenRecordLog(config.max_broken, self.stream_sizes)

    @property
    def micro_batch(self) -> BatchSize:
        return self.config.micro_batch

    def check_ranks(self, ranks: int) -> None:
        self.config.check_ranks(ranks)

    @property
    def epoch_size(self) -> int:
        """Number of records of the leading stream."""
        return next(iter(self.stream_sizes.values()))

    def batches(self, consumed: int, count: int) -> Iterator[Batch]:
        """Yields the next ``count`` micro-batches of the rank.

        Args:
            consumed: number of micro-batches that all ranks together have already used.
            count: number of micro-batches to yield.

        Raises:
            UserError: if too many records are broken, or a shard can no longer be read.
        """
        per_step = getattr(self.maker, "numbers_per_step", 1)
        if consumed % per_step:
            raise UserError(
                f"the run has used {consumed} micro-batches, which is not a whole number of steps of {per_step}: with "
                "data.images.clean, data.videos.clean, data.matching_steps or data.losses_from, resume it on the same number of "
                "ranks as before"
            )
        first = consumed + self.rank
        numbers = range(first, first + count * self.world_size, self.world_size)
        held: list[Batch] = []
        try:
            for batch in in_workers(self.maker.make, numbers, self.config.workers, self.config.worker_timeout_s):
                self.broken.add(batch)
                held.append(batch)
                if not self.broken.unusable:  # otherwise keep reading until every stream has a usable record
                    yield from held
                    held.clear()
        except GeneratorExit:  # the run stops early
            logger.info(self.broken.summary())
            raise
        if held:
            raise self.broken.none_usable(next(iter(self.broken.unusable)))
        # A resumed run may read too few records to check the fraction.
        counts_are_complete = consumed == 0 or self.broken.read >= self.broken.enough
        logger.info(self.broken.finish() if counts_are_complete else self.broken.summary())
