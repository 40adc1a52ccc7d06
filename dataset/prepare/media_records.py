"""Builds a folder of records from annotated images or videos."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from batches.base import BrokenRecord
from dataset.prepare.counts import Counts
from dataset.prepare.declarations import Found, Records, Source
from dataset.prepare.finders import Finder, ImageFinder, VideoFinder
from dataset.prepare.frame_making import TIME_LIMIT_S
from dataset.prepare.held_out import HeldOut
from dataset.prepare.line_shards import Job, Work, fill_with_records
from dataset.prepare.missing import write_missing
from dataset.prepare.output_folder import OutputFolder
from dataset.prepare.preparation import Preparation


def make_records(preparation: Preparation, records: Records) -> None:
    """Builds the folder, unless it exists.

    Raises:
        UserError: official files are missing or cannot be used, or the folder has a different origin.
    """
    options, raw, folder = preparation.options, preparation.raw, preparation.options.out / records.folder
    held_out = HeldOut() if records.held_out_split else preparation.held_out  # an evaluation split is held out itself
    finder: Finder = (
        ImageFinder(raw, records.image_files, held_out, options.missing, preparation.verified)
        if records.image_files is not None
        else VideoFinder(raw, held_out, options.missing)
    )
    files = records.files(raw)
    arguments = preparation.arguments(files)
    if records.image_files is None:
        arguments["videos"] = {**asdict(options.videos), "time_limit_s": TIME_LIMIT_S}

    def fill(output: OutputFolder) -> Counts:
        source = records.read(files, output.out, options)
        unit, reason_if_killed = ("image", "") if records.image_files is not None else ("video", "unreadable video")
        jobs = _jobs(source, finder, folder, records.batch, f"{unit}s")
        work = Work(source.convert, jobs, source.total, unit, reason_if_killed)
        counts = fill_with_records(output, work, options.workers, records.folder)
        write_missing(output.out, finder.missing)
        if finder.annotations_alone:
            options.report(f"{records.folder}: no image exists; the records have the usual paths, below {raw.roots[0]}")
        return counts

    def facts() -> Mapping[str, Any]:
        return {"annotations_alone": finder.annotations_alone}

    sizes: Mapping[str, int] | None = {} if records.held_out_split else None
    preparation.make(folder, arguments, fill, facts, sizes=sizes)


def _jobs(source: Source, finder: Finder, folder: Path, batch: int, unit: str) -> Iterator[Job]:
    """Yields jobs with the images or videos that records may contain. Paths in records are relative to ``folder``."""
    # If the folder is a symbolic link, ".." refers to the parent of the folder that the link points to.
    relative = lru_cache(partial(os.path.relpath, start=os.path.realpath(folder)))
    job = Job([], counts=source.counts)
    for item in source.items:
        job.size += 1
        job.counts.read[unit] += 1
        if isinstance(item, BrokenRecord):
            job.counts.skip_broken(item)
        elif (file := finder.find(item.names, job.counts, item.location)) is not None:
            path = os.path.join(relative(os.fspath(file.parent)), file.name)
            job.items.append(Found(path, file, item.location, item.values))
        if job.size == batch:
            yield job
            job = Job([])
    if job.size or job.counts != Counts():
        yield job
