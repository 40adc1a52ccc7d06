"""Fills a folder with files of which each is built from one source, such as a shard.

An interrupted run resumes after the last complete file.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from batches.base import BrokenRecord
from dataset.prepare.counts import Counts
from dataset.prepare.output_folder import Entry, OutputFolder, name_of_source
from dataset.shards.remote.shards import RemoteShard
from utils.progress import progress_bar


@dataclass(frozen=True)
class FileJob:
    """A file to build: the ``source`` that it is built from, and its path ``target`` in the output folder."""

    source: Path | RemoteShard
    target: Path

    @property
    def source_bytes(self) -> int:
        """Size of the source in bytes."""
        return self.source.stat().st_size if isinstance(self.source, Path) else self.source.state()[0]

    @property
    def size(self) -> int:
        """Size of the job in the unit of the progress bar."""
        return 1


F = TypeVar("F", bound=FileJob)


@dataclass(frozen=True)
class FinishedFile:
    """The result of a job: the counts of its file and the records that it skipped.

    Attributes:
        counts: the counts of the file, as JSON values.
        broken: the skipped records, if the command lists all of them.
    """

    counts: Mapping[str, Any]
    broken: Sequence[BrokenRecord] = ()

    @classmethod
    def of(cls, counts: Counts) -> FinishedFile:
        """Returns the result of a job that only counts what it skips."""
        return cls(counts.to_values())


Run = Callable[[Sequence[F], Callable[[int], object]], Generator[FinishedFile, None, None]]
"""Function that runs jobs, which write their files, and yields the result of each in order. It may call its second argument to
advance the progress bar within a file."""


def fill_with_files(folder: OutputFolder, jobs: Sequence[F], run: Run[F], **bar: Any) -> list[Entry]:
    """Builds the files that are missing in a folder.

    A file is not built again if a previous run built it from the same source, and the sizes of both are unchanged. A job that
    skips all records of its source need not write a file; such a job is not run again either.

    Args:
        folder: the folder.
        jobs: a job for each file.
        run: runs jobs.
        bar: options of the progress bar.

    Returns:
        The entries of the files, in the order of ``jobs``.
    """
    names = [job.target.relative_to(folder.out).as_posix() for job in jobs]
    left = [(name, job) for name, job in zip(names, jobs, strict=True) if not _is_finished(folder, name, job)]
    total, done = sum(job.size for job in jobs), 0
    initial = total - sum(job.size for _, job in left)
    progress = progress_bar(total=total, initial=initial, **bar)
    with progress, closing(run([job for _, job in left], progress.update)) as results:
        for (name, job), finished in zip(left, results, strict=True):
            size = job.target.stat().st_size if job.target.exists() else 0
            broken = tuple(each.to_values() for each in finished.broken)
            folder.add(Entry(name, name_of_source(job.source), job.source_bytes, size, finished.counts, broken))
            done += job.size
            progress.update(initial + done - progress.n)
    return [folder.entries[name] for name in names]


def _is_finished(folder: OutputFolder, name: str, job: FileJob) -> bool:
    entry = folder.entries.get(name)
    wrote_nothing = entry is not None and not entry.bytes and entry.source_bytes == job.source_bytes
    return wrote_nothing or folder.finished(name, job.source, job.source_bytes) is not None
