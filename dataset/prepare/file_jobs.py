"""Fills a folder with files of which each is built by a separate job."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Protocol, TypeVar

from dataset.prepare.counts import Counts
from dataset.prepare.output_folder import Entry, OutputFolder
from utils.progress import progress_bar


class FileJob(Protocol):
    """A file to build: its path ``target`` in the output folder, and the ``source`` that it is built from."""

    @property
    def source(self) -> Path: ...

    @property
    def target(self) -> Path: ...


F = TypeVar("F", bound=FileJob)


def fill_with_files(
    folder: OutputFolder, jobs: Sequence[F], run: Callable[[Sequence[F]], Generator[Counts, None, None]], **bar: Any
) -> Counts:
    """Builds the files that are missing in a folder, and returns the total counts of all files.

    Args:
        folder: the folder.
        jobs: a job for each file.
        run: runs jobs, which write their files, and yields the counts of each file in order.
        bar: options of the progress bar.
    """
    empty = {name for name, entry in folder.entries.items() if not entry.bytes}  # files whose records were all skipped
    left = [job for job in jobs if job.target.name not in empty and not folder.finished(job.target.name, job.source)]
    with closing(run(left)) as results:
        results_with_bar = progress_bar(results, total=len(jobs), initial=len(jobs) - len(left), **bar)
        for job, counts in zip(left, results_with_bar, strict=True):
            size = job.target.stat().st_size if job.target.exists() else 0
            source, source_bytes = str(job.source.resolve()), job.source.stat().st_size
            folder.add(Entry(job.target.name, source, source_bytes, size, counts.to_values()))
    total = Counts()
    for job in jobs:
        total.add(Counts.from_values(folder.entries[job.target.name].counts))
    return total
