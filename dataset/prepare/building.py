"""A folder of records, made from official files by several processes: whole or not there, resumed where a run was cut.

Records are made in ``OUT/.building-NAME`` and appear as ``OUT/NAME`` in one step, with a manifest. A run that is cut leaves the
folder of work; the same command goes on from its last whole shard. An error in the official files removes it.
"""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import shutil
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from dataset.prepare.counts import Counts
from dataset.prepare.manifest import Manifest, check_same, is_prepared, write_manifest
from dataset.prepare.output import JOURNAL, Entry, OutputFolder, json_line
from dataset.prepare.processes import in_order
from utils.errors import UserError
from utils.files import replacing
from utils.progress import progress_bar

Image = TypeVar("Image")

JOBS_PER_SHARD = 100
"""Jobs whose records are one shard, which is the unit of resuming."""

MAX_BROKEN = 0.01
"""Share of what was read that may be unusable by its form, before the file is refused as a whole."""

FORM = ("missing key", "wrong type", "bad json", "wrong columns")
"""Reasons that speak of another file, or of a damaged one."""

_JOURNAL_MANIFEST = "_journal/manifest.json"


class WorkerDiedError(UserError):
    """A process was killed: no fault of the official files, so what is made stays and is resumed."""


@dataclass
class Job:
    """A part of the input: ``items`` for the function that converts them, ``size`` as the unit of the progress bar, what was
    counted when the part was read, and the ``place`` of a single item."""

    items: list[Any]
    size: int = 0
    counts: Counts = field(default_factory=Counts)
    place: str = ""


def image_jobs(
    images: Iterable[Image], item_of: Callable[[Image, Counts], Any], batch: int, counts: Counts | None = None
) -> Iterator[Job]:
    """Jobs of ``batch`` images each.

    Args:
        images: the images of a set.
        item_of: the item of an image for the function that converts it; None, and counted, if no record may have the image.
        batch: images of a job.
        counts: what was counted before; the first job has it.
    """
    job = Job([], counts=counts or Counts())
    for image in images:
        job.size += 1
        job.counts.read["images"] += 1
        item = item_of(image, job.counts)
        if item is not None:
            job.items.append(item)
        if job.size == batch:
            yield job
            job = Job([])
    yield job


class Converted(NamedTuple):
    """Records of a job, a line each, and all its counts."""

    lines: list[bytes]
    counts: Counts


@dataclass(frozen=True)
class Work:
    """Jobs in a fixed order, and the function that converts the items of one into records.

    ``convert``: at the top of a module, since processes run it. ``total``: the sizes of all jobs together, for the progress bar.
    ``unit``: what the sizes count. ``deadly``: the reason under which an item is left out that ends the process it is converted
    in, as a damaged video can; "": that ends the run.
    """

    convert: Callable[[list[Any], Counts], Iterator[Mapping[str, Any]]]
    jobs: Iterator[Job]
    total: int
    unit: str = "image"
    deadly: str = ""


def build_folder(
    out: Path,
    name: str,
    arguments: Mapping[str, Any],
    fill: Callable[[OutputFolder], Counts],
    *,
    overwrite: bool,
    facts: Callable[[], Mapping[str, Any]] = dict,
    hashed: bool = True,
) -> Manifest | None:
    """Make the folder ``out/name``, unless it is there and whole.

    Args:
        out: the folder in which it is made.
        name: of the folder.
        arguments: what decides the content, as JSON values: the sources with their hashes among them.
        fill: writes the shards into the folder that it is given, and notes each that is whole.
        overwrite: make it anew.
        facts: what else the manifest says, once the shards are there.
        hashed: the manifest has a hash of each shard; False: its size alone, for what is too large to be read again.

    Returns:
        The manifest; None if the folder was made with these arguments before.

    Raises:
        UserError: the folder is of another origin or of other arguments; the official files cannot be used.
    """
    target = out / name
    if is_prepared(target) and not overwrite:
        check_same(target, arguments)
        return None
    building = out / f".building-{name}"
    _remove_stale(building, arguments)
    with OutputFolder(building, _JOURNAL_MANIFEST, arguments, (), overwrite=overwrite) as folder:
        _remove_leftovers(folder)
        try:
            counts = fill(folder)
            _refuse_unusable(counts, name)
        except WorkerDiedError:
            raise
        except UserError:
            folder.release()
            shutil.rmtree(building, ignore_errors=True)
            raise
        manifest = write_manifest(building, arguments, counts, facts(), hashed=hashed)
        folder.close()
    shutil.rmtree(building / "_journal")
    _put_in_place(building, target)
    return Manifest(target, manifest.values)


def _remove_stale(building: Path, arguments: Mapping[str, Any]) -> None:
    """Remove what a run that was cut made with other arguments: nobody has used it. A run that still works keeps its folder."""
    try:
        with (building / JOURNAL).open("r+", encoding="utf-8") as journal:
            fcntl.flock(journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
            notes = [json.loads(line) for line in journal.read().split("\n") if line.startswith('{"arguments"')]
            if notes and notes[0]["arguments"] != dict(arguments):
                shutil.rmtree(building)
    except (OSError, ValueError):  # no such folder, or one in use, as the next step says; or a line that was cut
        return


def _remove_leftovers(folder: OutputFolder) -> None:
    """Remove what an earlier run left without noting it as whole: it may be cut, or be made with other arguments."""
    for path in folder.out.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != JOURNAL and path.name not in folder.entries:
            path.unlink()


def fill_with_records(folder: OutputFolder, work: Work, workers: int, name: str) -> Counts:
    """Make the shards of records that are not there; returns the counts of all."""
    done = {entry.file: Counts.from_values(entry.counts) for entry in folder.entries.values()}
    counts = Counts()
    with progress_bar(total=work.total, desc=name, unit=work.unit) as bar:
        jobs = _jobs_to_do(work, done, bar.update)
        results = in_order(_convert, jobs, workers, _died)
        with closing(results):
            for shard, parts in itertools.groupby(results, key=lambda result: result.shard):
                entry = _write_shard(folder.out / shard, parts, bar.update)
                folder.add(entry)
                done[shard] = Counts.from_values(entry.counts)
    for shard in sorted(done):
        counts.add(done[shard])
    return counts


class _Task(NamedTuple):
    shard: str
    convert: Callable[[list[Any], Counts], Iterator[Mapping[str, Any]]]
    job: Job
    deadly: str


class _Result(NamedTuple):
    shard: str
    size: int
    converted: Converted


def _jobs_to_do(
    work: Work, done: Mapping[str, Counts], on_skipped: Callable[[int], object]
) -> Generator[_Task, None, None]:
    for number, job in enumerate(work.jobs):
        shard = f"part-{number // JOBS_PER_SHARD:05}.jsonl"
        if shard in done:
            on_skipped(job.size)
        else:
            yield _Task(shard, work.convert, job, work.deadly)


def _convert(task: _Task) -> _Result:
    """Convert a job; runs in a worker process."""
    counts = task.job.counts
    lines = [json_line(record) for record in task.convert(task.job.items, counts)]
    counts.made["records"] += len(lines)
    return _Result(task.shard, task.job.size, Converted(lines, counts))


def _died(task: _Task) -> _Result:
    if task.deadly:
        task.job.counts.leave_out(task.deadly, task.job.place, "the process that read it died")
        return _Result(task.shard, task.job.size, Converted([], task.job.counts))
    raise WorkerDiedError(
        f"{task.shard}: a process that converted it was killed; is there enough memory? give fewer --workers"
    )


def _write_shard(path: Path, parts: Iterator[_Result], on_result: Callable[[int], object]) -> Entry:
    counts = Counts()
    with replacing(path) as part, part.open("wb") as stream:
        for result in parts:
            stream.writelines(result.converted.lines)
            counts.add(result.converted.counts)
            on_result(result.size)
        size = stream.tell()
    return Entry(path.name, "", 0, size, counts.to_values())


def _refuse_unusable(counts: Counts, name: str) -> None:
    """Raise where too much is unusable by its form, or nothing is left."""
    broken = {reason: counts.left_out[reason] for reason in FORM if counts.left_out[reason]}
    read, bad = sum(counts.read.values()), sum(broken.values())
    if bad > MAX_BROKEN * read:
        first = "; ".join(f"{number:,} {reason} ({counts.places[reason][0]})" for reason, number in broken.items())
        raise UserError(
            f"{name}: {bad:,} of {read:,} entries cannot be used: {first}; is each the official file, and whole?"
        )
    if not sum(counts.made.values()):
        reasons = ", ".join(f"{number:,} {reason}" for reason, number in counts.left_out.items()) or "nothing was read"
        raise UserError(f"{name}: no record is left of {read:,} entries: {reasons}")


def _put_in_place(building: Path, target: Path) -> None:
    """Rename the folder; an old one goes."""
    target.parent.mkdir(parents=True, exist_ok=True)
    old = target.with_name(f".old-{target.name}")
    if target.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.rename(target, old)
    os.rename(building, target)
    shutil.rmtree(old, ignore_errors=True)
