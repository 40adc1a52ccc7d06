"""Writes shards of JSON lines with several processes.

An interrupted run resumes after the last complete shard.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from dataset.broken import BrokenRecordError, broken_record
from dataset.prepare.counts import Counts
from dataset.prepare.output_folder import Entry, OutputFolder, json_line
from dataset.prepare.processes import WorkerDiedError, in_order
from utils.files import replacing
from utils.progress import progress_bar

Convert = Callable[[Any, Counts], Iterator[Mapping[str, Any]]]
"""Function that yields the records of an item. It must be a top-level function, or a :class:`functools.partial` of one, because
worker processes call it."""

WRONG_VALUE = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
"""Errors that are raised if a value of an official file is missing or has the wrong type."""

JOBS_PER_SHARD = 100
"""Number of jobs whose records are written to one shard. After an interruption, the unfinished shard is rebuilt."""


@dataclass
class Job:
    """A part of the input: the ``items`` to convert, their ``size`` in the progress bar's unit, and the ``counts`` from reading
    them."""

    items: list[Any]
    size: int = 0
    counts: Counts = field(default_factory=Counts)


@dataclass(frozen=True)
class Work:
    """Jobs in a fixed order, and the function that converts their items to records.

    Attributes:
        convert: converts an item.
        jobs: the jobs.
        total: sum of the sizes of the jobs, for the progress bar.
        unit: unit of the sizes.
        reason_if_killed: reason to report for an item that kills the worker process, as a damaged video may do; the item is then
            skipped. Each job must have a single item, with a ``location``. If the reason is "", a killed process ends the run.
    """

    convert: Convert
    jobs: Iterator[Job]
    total: int
    unit: str = "image"
    reason_if_killed: str = ""


def fill_with_records(folder: OutputFolder, work: Work, workers: int, name: str) -> Counts:
    """Builds the missing shards of records, and returns the total counts of all shards."""
    done = {entry.file: Counts.from_values(entry.counts) for entry in folder.entries.values()}
    counts = Counts()
    with progress_bar(total=work.total, desc=name, unit=work.unit) as bar:
        results = in_order(_convert, _missing_parts(work, done, bar.update), workers, _died)
        with closing(results):
            for shard, parts in itertools.groupby(results, key=lambda part: part.shard):
                entry = _write_shard(folder.out / shard, parts, bar.update)
                folder.add(entry)
                done[shard] = Counts.from_values(entry.counts)
    for shard in sorted(done):
        counts.add(done[shard])
    return counts


class _Part(NamedTuple):
    """A part, produced by one job, of a shard that is still to be built."""

    shard: str
    convert: Convert
    reason_if_killed: str
    job: Job


class _FinishedPart(NamedTuple):
    """A finished part of a shard: its records as lines, and ``size`` and ``counts`` of its job."""

    shard: str
    lines: list[bytes]
    size: int
    counts: Counts


def _missing_parts(
    work: Work, done: Mapping[str, Counts], on_skipped: Callable[[int], object]
) -> Generator[_Part, None, None]:
    for index, job in enumerate(work.jobs):
        shard = f"part-{index // JOBS_PER_SHARD:05}.jsonl"
        if shard in done:
            on_skipped(job.size)
        else:
            yield _Part(shard, work.convert, work.reason_if_killed, job)


def _convert(part: _Part) -> _FinishedPart:
    """Converts the items of a job; runs in a worker process. An item whose values are missing or have the wrong type is skipped
    and counted."""
    counts, lines = part.job.counts, list[bytes]()
    for item in part.job.items:
        try:
            lines += [json_line(record) for record in part.convert(item, counts)]
        except BrokenRecordError as error:
            counts.skip_broken(broken_record(error, item.location))
        except WRONG_VALUE as error:
            counts.skip("wrong type", item.location, f"{type(error).__name__}: {error}")
    counts.written["records"] += len(lines)
    return _FinishedPart(part.shard, lines, part.job.size, counts)


def _died(part: _Part) -> _FinishedPart:
    if part.reason_if_killed:
        [item] = part.job.items
        part.job.counts.skip(part.reason_if_killed, item.location, "the process that read it died")
        return _FinishedPart(part.shard, [], part.job.size, part.job.counts)
    raise WorkerDiedError(part.shard)


def _write_shard(path: Path, parts: Iterator[_FinishedPart], on_part: Callable[[int], object]) -> Entry:
    counts = Counts()
    with replacing(path) as unfinished, unfinished.open("wb") as stream:
        for part in parts:
            stream.writelines(part.lines)
            counts.add(part.counts)
            on_part(part.size)
        size = stream.tell()
    return Entry(path.name, "", 0, size, counts.to_values())
