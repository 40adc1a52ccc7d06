"""Batches for a run: worker processes, resumption at any micro-batch, and the account of broken records."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Annotated, Literal, Protocol

from pydantic import Field

from batches.base import Batch, BrokenRecord, MicroBatch
from dataset.records.broken import remedy_for
from dataset.text.processors import TextLimits
from dataset.workers import TIMEOUT_S, in_workers
from utils.config import MAY_CHANGE, Config
from utils.errors import UserError
from utils.events import BrokenKind, CountedRecords, SkippedRecord

logger = logging.getLogger(__name__)

_ENOUGH_TO_JUDGE = 1000
_FEW = 8
"""Records of a stream that are all broken, from which it is named where too many of all records are."""
_FIRST = 100
"""Records of a stream of which one at least has to be usable before a step is made."""


class LoadingConfig(Config):
    """How records become batches, whatever the task."""

    text: TextLimits = Field(default_factory=TextLimits, description="how long a text may be")
    workers: Annotated[int, MAY_CHANGE] = Field(
        4, ge=0, description="processes that make batches; 0: the training process itself"
    )
    worker_timeout_s: Annotated[float, MAY_CHANGE] = Field(
        TIMEOUT_S,
        gt=0,
        description="seconds without its next batch after which a worker is killed and replaced",
    )
    max_broken: Annotated[float, MAY_CHANGE] = Field(
        0.01, ge=0, le=1, description="share of broken records that stops the run when exceeded"
    )
    max_pixels: int = Field(80_000_000, ge=1, description="images with more pixels are broken records")
    pixels: Literal["shown", "stored"] = Field(
        "shown",
        description="shown: EXIF orientation is applied, except where there are boxes, which refer to stored pixels, "
        "and transparency is laid on white; stored: neither (released)",
    )

    @property
    def micro_batch(self) -> MicroBatch:
        """Size of a micro-batch. The config class of each task's data says it."""
        raise NotImplementedError(f"{type(self).__name__} does not say its micro_batch")

    @property
    def records_per_batch(self) -> int:
        """Records of the leading stream that a rank reads for a micro-batch."""
        return self.micro_batch.size

    def check_ranks(self, ranks: int) -> None:
        """Raise a :class:`UserError` for a number of ranks that the data cannot be dealt to; by default all will do."""


class BrokenRecordLog:
    """Counts broken records by kind, logs each kind once, and stops a run that has too many.

    Args:
        max_broken: greatest share of broken records among those read.
        stream_sizes: records of each stream; the share is judged once all of them, or 1000, have been read.
    """

    def __init__(self, max_broken: float, stream_sizes: Mapping[str, int]):
        self.max_broken, self.stream_sizes = max_broken, stream_sizes
        self.enough = min(sum(stream_sizes.values()), _ENOUGH_TO_JUDGE)
        self.read = 0
        self.unusable: dict[str, int] = {}
        """Records read of each stream of which none was usable yet."""
        self._usable: set[str] = set()
        self.broken_records = 0
        self.kinds: Counter[str] = Counter()
        self.first: dict[str, BrokenRecord] = {}

    def add(self, batch: Batch) -> None:
        """Count a batch.

        A record counts once towards the share, however many of its parts are broken; kinds count parts.

        Raises:
            UserError: the summary, as soon as the share is exceeded, or the first 100 records of a stream are all broken.
        """
        self.read += batch.read
        for stream, count in batch.counts.items():
            if stream in self._usable or count.usable:
                self._usable.add(stream)
                self.unusable.pop(stream, None)
            else:
                self.unusable[stream] = self.unusable.get(stream, 0) + count.read
        self.broken_records += len({broken.location for broken in batch.broken})
        for broken in batch.broken:
            self.kinds[broken.kind] += 1
            if broken.kind not in self.first:
                self.first[broken.kind] = broken
                logger.warning(SkippedRecord(location=broken.location, kind=broken.kind, message=broken.message))
                if broken.traceback:
                    logger.warning("%s at %s:\n%s", broken.kind, broken.location, broken.traceback)
        for stream, read in self.unusable.items():
            if read >= min(self.stream_sizes[stream], _FIRST):
                raise self.none_usable(stream)
        if self.read >= self.enough:
            self._judge()

    def none_usable(self, stream: str) -> UserError:
        """The error for a stream whose records are all broken."""
        kinds = "; ".join(
            f"{count} {kind} (first: {self.first[kind].location}: {self.first[kind].message})"
            for kind, count in self.kinds.most_common()
        )
        return UserError(
            f"none of the first {self.unusable[stream]} records of {stream} can be used; broken so far: {kinds}; mend them, or "
            "the paths in the section data"
        )

    def finish(self) -> CountedRecords:
        """The summary at the end of a run, however short.

        Raises:
            UserError: where the share is exceeded.
        """
        self._judge()
        return self.summary()

    def summary(self) -> CountedRecords:
        """How many records were read and broken, with the first of each kind."""
        kinds = [
            BrokenKind(kind=kind, count=count, first=self.first[kind].location)
            for kind, count in self.kinds.most_common()
        ]
        return CountedRecords(read=self.read, broken=self.broken_records, kinds=kinds)

    def _judge(self) -> None:
        if self.broken_records > self.max_broken * self.read:
            for stream, read in self.unusable.items():
                if read >= min(self.stream_sizes[stream], _FEW):  # other streams would hide its share
                    raise self.none_usable(stream)
            limit = f"more than data.max_broken = {100 * self.max_broken:.3g} %"
            tolerated = "data.max_broken" if self.broken_records <= self.read / 2 else None
            found = self.summary()
            raise UserError(f"{found.share()}, {limit}: {found.listed()}; {remedy_for(self.kinds, tolerated)}")


class BatchMaker(Protocol):
    """Micro-batch number u of a run, as a function of u alone.

    ``stream_sizes``: records of each stream, the leading one first; ``examples_per_batch``: examples of a micro-batch, all
    streams together; ``records_per_batch``: records of the leading stream that a micro-batch reads.
    """

    stream_sizes: dict[str, int]
    examples_per_batch: int
    records_per_batch: int

    def make(self, number: int) -> Batch:
        """Micro-batch ``number``, counted over all ranks."""
        ...


class BatchLoader:
    """Micro-batches for one rank, made by worker processes.

    Micro-batch number u is the same whoever makes it: the rank takes the numbers ``consumed + k * world_size + rank``. So
    batches do not depend on the number of workers, and a run resumed after ``consumed`` micro-batches (over all ranks) repeats
    the uninterrupted one, also on another number of ranks.

    Args:
        maker: of the batches.
        config: workers, and the share of broken records that stops a run.
        rank, world_size: this process among those that share the data.
    """

    def __init__(self, maker: BatchMaker, config: LoadingConfig, *, rank: int = 0, world_size: int = 1):
        self.maker, self.config, self.rank, self.world_size = maker, config, rank, world_size
        self.stream_sizes = maker.stream_sizes
        self.examples_per_batch = maker.examples_per_batch
        self.records_per_batch = maker.records_per_batch
        self.broken = BrokenRecordLog(config.max_broken, self.stream_sizes)

    @property
    def micro_batch(self) -> MicroBatch:
        return self.config.micro_batch

    def check_ranks(self, ranks: int) -> None:
        self.config.check_ranks(ranks)

    @property
    def epoch_size(self) -> int:
        """Records of the leading stream."""
        return next(iter(self.stream_sizes.values()))

    def batches(self, consumed: int, count: int) -> Iterator[Batch]:
        """The rank's next ``count`` micro-batches, when all ranks together have consumed ``consumed``.

        Raises:
            UserError: too many broken records, or a shard that can no longer be read.
        """
        per_step = getattr(self.maker, "numbers_per_step", 1)
        if consumed % per_step:
            raise UserError(
                f"the run has used {consumed} micro-batches, which are no whole steps of {per_step}: with data.images.clean, "
                "data.videos.clean or data.matching_steps, resume it on as many ranks as before"
            )
        first = consumed + self.rank
        numbers = range(first, first + count * self.world_size, self.world_size)
        held: list[Batch] = []
        for batch in in_workers(self.maker.make, numbers, self.config.workers, self.config.worker_timeout_s):
            self.broken.add(batch)
            held.append(batch)
            if not self.broken.unusable:  # else look further before a step is batch
                yield from held
                held.clear()
        if held:
            raise self.broken.none_usable(next(iter(self.broken.unusable)))
        # What a resumed run reads is too little to judge a share by, unless it is as much as anywhere.
        whole = consumed == 0 or self.broken.read >= self.broken.enough
        logger.info(self.broken.finish() if whole else self.broken.summary())
