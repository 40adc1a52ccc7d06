"""Prepares sets of URLs that are too large for duplicate detection. Each Parquet or JSON Lines file is prepared separately.

Each list and each shard is a separate job, so any number of processes or machines can work on billions of pairs. A URL that is
listed twice is downloaded twice. If the rows have annotations, the lists for img2dataset contain them as well
(:mod:`dataset.prepare.pair_shards`).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from dataset.prepare.counts import Counts
from dataset.prepare.filters import Filters
from dataset.prepare.img2dataset import Form, check_unique_names, finished_shards
from dataset.prepare.output import Entry, OutputFolder
from dataset.prepare.pair_lists import (
    ANNOTATIONS,
    DAMAGED,
    LINES,
    FileJob,
    Selection,
    columns_of,
    list_stem,
    rows_by_address,
    write_list,
)
from dataset.prepare.pair_shards import convert_shard, has_annotations, take_shard
from dataset.prepare.parquet_rows import DamagedFileError
from dataset.prepare.preparation import Preparation
from dataset.prepare.processes import in_order
from dataset.prepare.raw_folder import RawFile
from dataset.prepare.ray_jobs import in_order_on_ray
from dataset.prepare.rows import RowFolder
from dataset.prepare.sets.base import ParquetPairs
from utils.errors import UserError
from utils.files import open_regular
from utils.progress import progress_bar

FOOTER = 1 << 16
"""Number of bytes at the end of a Parquet file that identify the file, because they contain the counts and extremes of all
columns."""


class PairsByFile:
    """The URLs of a data set (:class:`~dataset.prepare.addresses.Addresses`): parquet files, or already downloaded shards, in the
    folder of official files and in subfolders whose name contains the name of the data set.

    If the rows have annotations, files of JSON lines are lists as well, and already downloaded shards get their annotations from
    the lists.
    """

    form: Form = "parquet"
    hashed = False

    def __init__(self, preparation: Preparation, pairs: ParquetPairs):
        self.preparation, self.options = preparation, preparation.options
        filters = self.options.filters
        if "safety" not in pairs.columns and filters.safety == Filters.safety:
            filters = replace(filters, safety="none")
        self.selection = Selection(pairs, filters, preparation.held_out, self.options.missing)
        self.columns: tuple[str, ...] = () if pairs.annotations is None else (ANNOTATIONS,)
        folders, patterns = self._folders(), ["*.parquet", *(LINES if pairs.annotations is not None else ())]
        self._lists = [
            path
            for folder in folders
            for pattern in patterns
            for path in sorted(folder.glob(pattern))
            if not is_of_shard(path)
        ]
        self._downloaded = [folder for folder in folders if finished_shards(folder)[0]]
        if not self._lists and not self._downloaded:
            raise UserError(
                f"neither this folder nor a folder *{preparation.name}* in it contains parquet files or finished "
                "shards of img2dataset",
                where=self.options.raw,
            )
        self._joined = pairs.annotations is not None and bool(self._downloaded)
        arguments = preparation.arguments({})
        self._arguments = {key: value for key, value in arguments.items() if key not in ("sources", "verify")}

    @property
    def list_path(self) -> Path:
        return self.preparation.downloads / f"{self.preparation.name}_urls"

    def list_arguments(self) -> Mapping[str, Any] | None:
        if not self._lists or self._joined:
            return None
        for path in self._lists:  # a missing column is reported before any list is written
            try:
                columns_of(path, self.selection)
                break
            except DamagedFileError:  # skipped and counted, like damaged files found later
                continue
        check_unique_names(self._lists)
        if self._downloaded:
            unread = [path for folder in self._downloaded for path in finished_shards(folder)[0]]
            self.preparation.report(
                f"{len(unread):,} finished shards are not read, since there are lists too, first {unread[0]}; to use them, set "
                "--raw to a folder without the lists"
            )
        sources = {path.name: footer_digest(path) for path in self._lists}
        return {**self._arguments, "sources": sources, "filters": asdict(self.selection.filters)}

    def write_list(self, output: OutputFolder) -> Counts:
        """Writes a list for each file."""
        jobs = [FileJob(path, output.out / f"{list_stem(path)}.parquet", self.selection) for path in self._lists]
        return self._fill(output, write_list, jobs, "list")

    def shard_folders(self) -> list[Path]:
        if self._lists and not self._joined:
            return [self.preparation.downloads / f"{self.preparation.name}_shards"]
        return self._downloaded

    def shard_arguments(self) -> Mapping[str, Any]:
        lists = {"lists": {path.name: footer_digest(path) for path in self._lists}} if self._joined else {}
        return {**self._arguments, **lists, "filters": asdict(self._shard_selection.filters)}

    @property
    def _shard_selection(self) -> Selection:
        """The selection for shards. Images that were downloaded with our list have already passed the filters."""
        if not self._lists or self._joined:
            return self.selection
        return Selection(self.selection.pairs, Filters(safety="none"), self.selection.held_out, self.selection.excluded)

    def take_shards(self, output: OutputFolder, shards: list[Path]) -> Counts:
        selection = self._shard_selection
        if selection.pairs.annotations is None:
            jobs = [FileJob(path, output.out / path.name, selection) for path in shards]
            return self._fill(output, take_shard, jobs, "shard")
        with RowFolder(output.out) as folder:
            rows = None
            if self._joined and self._lists and not has_annotations(shards[0], selection.pairs.annotations):
                self.preparation.report("the shards have no annotations; they are found in the lists by the URLs")
                folder.read(partial(rows_by_address, selection, self._lists), {"rows": RawFile(self._lists[0])}, 1)
                rows = folder["rows"].path
            jobs = [FileJob(path, output.out / path.name, selection, rows) for path in shards]
            return self._fill(output, convert_shard, jobs, "shard")

    def _folders(self) -> list[Path]:
        """Returns the folders that may contain official files: ``--raw``, folders whose name contains the data set's name, and
        their subfolders. Other folders may contain the shards of other data sets."""
        name, raw, found = self.preparation.name, self.options.raw, []
        for root, folders, _ in os.walk(raw, followlinks=True):
            folder, is_output = Path(root), os.path.realpath(root) == os.path.realpath(self.options.out)
            folders[:] = [] if is_output else sorted(folders)
            parts = [raw.resolve().name, *folder.relative_to(raw).parts]
            if not is_output and (folder == raw or any(name in part.lower() for part in parts)):
                found.append(folder)
        return found

    def _fill(
        self, output: OutputFolder, work: Callable[[FileJob], Counts], jobs: Sequence[FileJob], unit: str
    ) -> Counts:
        """Runs the jobs whose files are missing, and returns the total counts of all jobs."""
        done = {entry.file: Counts.from_values(entry.counts) for entry in output.entries.values()}
        left = [job for job in jobs if job.target.name not in done]
        with closing(self._results(work, left)) as results:
            bar = progress_bar(
                results, total=len(jobs), initial=len(jobs) - len(left), desc=self.preparation.name, unit=unit
            )
            for job, counts in zip(left, bar, strict=True):
                size = job.target.stat().st_size if job.target.exists() else 0
                output.add(Entry(job.target.name, "", 0, size, counts.to_values()))
                done[job.target.name] = counts
        total = Counts()
        for name in sorted(done):
            total.add(done[name])
        return total

    def _results(self, work: Callable[[FileJob], Counts], jobs: Iterable[FileJob]) -> Generator[Counts, None, None]:
        if self.options.ray is not None:
            return in_order_on_ray(work, jobs, self.options.ray, self.options.workers, _died)
        return in_order(work, jobs, self.options.workers, _died)


def is_of_shard(path: Path) -> bool:
    """Returns True if img2dataset wrote a parquet file for a shard."""
    return path.with_suffix(".tar").exists()


def footer_digest(path: Path) -> str:
    """Returns the size and a hash of the end of a parquet file. Reading all files (300 GB) would take as long as filtering
    them."""
    with open_regular(path) as stream:
        size = os.fstat(stream.fileno()).st_size
        stream.seek(max(0, size - FOOTER))
        return f"{size} {hashlib.sha256(stream.read()).hexdigest()}"


def _died(job: FileJob) -> Counts:
    counts = Counts()
    counts.skip(DAMAGED, str(job.source), "two processes that read the file died")
    return counts
