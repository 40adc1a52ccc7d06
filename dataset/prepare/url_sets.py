"""Builds a folder of shards from URLs in two steps: it writes lists of URLs for img2dataset, which downloads the images, and
later takes over the shards that img2dataset wrote.

Each list and each shard is a separate job, for the processes of this machine or of a Ray cluster. If the rows have annotations,
the lists for img2dataset contain them as well (:mod:`dataset.prepare.url_shards`).
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

from dataset.prepare.compared_shards import Comparison, scan_records
from dataset.prepare.counts import Counts
from dataset.prepare.declarations import Files, Urls
from dataset.prepare.file_jobs import FinishedFile, fill_with_files
from dataset.prepare.filters import Filters
from dataset.prepare.finders import held_out_contents
from dataset.prepare.img2dataset import (
    check_unique_names,
    download_command,
    finished_shards,
    place_shard,
    shards_digest,
    statuses_of,
)
from dataset.prepare.missing import write_missing
from dataset.prepare.output_folder import OutputFolder
from dataset.prepare.parquet_rows import DamagedFileError
from dataset.prepare.preparation import Preparation
from dataset.prepare.processes import WorkerDiedError, in_order
from dataset.prepare.raw_folder import RawFile
from dataset.prepare.ray_jobs import in_order_on_ray
from dataset.prepare.rows import RowFolder
from dataset.prepare.url_lists import (
    ANNOTATIONS,
    DAMAGED,
    LINES,
    ListJob,
    Selection,
    columns_of,
    list_stem,
    rows_by_address,
    write_list,
)
from dataset.prepare.url_shards import ShardJob, has_annotations, take_shard
from utils.errors import UserError
from utils.files import open_regular
from utils.progress import progress_bar

J = TypeVar("J")
R = TypeVar("R")

FOOTER = 1 << 16
"""Number of bytes at the end of a Parquet file that identify the file, because they contain the counts and extremes of all
columns."""


LIST = "urls"
"""Name of the list of a data set whose official list is not a table."""


def make_from_urls(preparation: Preparation, urls: Urls) -> None:
    """Builds the lists of a data set, and its folder of records once there are finished shards.

    Raises:
        UserError: official files are missing or cannot be used, or a folder has a different origin.
    """
    url_set = _UrlSet(preparation, urls)
    if url_set.has_lists:
        url_set.make_lists()
    if shards := url_set.finished_shards():
        url_set.make_records(shards)
    else:
        url_set.report_download()


class _UrlSet:
    """The URLs of a data set."""

    def __init__(self, preparation: Preparation, urls: Urls):
        self.preparation, self.options, self.urls = preparation, preparation.options, urls
        filters = self.options.filters
        if "safety" not in urls.columns and filters.safety == Filters.safety:
            filters = replace(filters, safety="none")
        self.selection = Selection(urls, filters, preparation.held_out, self.options.missing)
        self.files: Files = urls.files(preparation.raw) if urls.files is not None else {}
        self.tables, self.downloaded = ([], []) if urls.are_compared else self._found_tables()
        self.is_joined = urls.annotations is not None and bool(self.downloaded)
        """Whether downloaded shards get their annotations from the tables."""
        self.list_folder = preparation.downloads / f"{preparation.name}_urls"

    @property
    def has_lists(self) -> bool:
        """True if there are official lists from which lists for img2dataset are made."""
        return bool(self.files or self.tables) and not self.is_joined

    def make_lists(self) -> None:
        """Writes a list for img2dataset for each official list."""
        for path in self.tables:  # a missing column is reported before any list is written
            try:
                columns_of(path, self.selection)
                break
            except DamagedFileError:  # skipped and counted, like damaged files found later
                continue
        check_unique_names(self.tables)
        if self.downloaded:
            unread = [path for folder in self.downloaded for path in finished_shards(folder)[0]]
            self.preparation.report(
                f"{len(unread):,} finished shards are not read, since there are lists too, first {unread[0]}; to use them, set "
                "--raw to a folder without the lists"
            )
        arguments = {key: value for key, value in self._arguments.items() if key != "verify"}
        if self.tables:
            arguments |= {"sources": _digests(self.tables), "filters": asdict(self.selection.filters)}

        def fill(output: OutputFolder) -> Counts:
            form, total = self.urls.list_format, self.preparation.data_set.sizes.get("pairs")
            if self.files:
                first = next(iter(self.files.values())).path
                job = ListJob(
                    first, output.out / f"{LIST}.{form}", self.files, self.selection, self.preparation.name, total
                )
                return write_list(job) if self.options.ray is None else self._fill(output, write_list, [job], "list")
            tables = ((path, output.out / f"{list_stem(path)}.{form}") for path in self.tables)
            jobs = [ListJob(path, target, {"table": RawFile(path)}, self.selection) for path, target in tables]
            return self._fill(output, write_list, jobs, "list")

        self.preparation.make(self.list_folder, arguments, fill, index=False)

    def finished_shards(self) -> list[Path]:
        """Returns the shards that img2dataset has finished, and reports the others."""
        own = self.preparation.downloads / f"{self.preparation.name}_shards"
        shards: list[Path] = []
        for folder in [own] if self.has_lists else self.downloaded:
            finished, unfinished = finished_shards(folder)
            shards += finished
            if unfinished:
                self.preparation.report(
                    f"{len(unfinished):,} shards are unfinished and skipped, first {unfinished[0]}; rerun the img2dataset command"
                )
        check_unique_names(shards)
        return shards

    def report_download(self) -> None:
        """Reports the command that downloads the images."""
        self.preparation.report(
            "download the images with img2dataset (pip install img2dataset), then rerun this command:"
        )
        command = download_command(
            self._list if self.urls.are_compared else self.list_folder,
            self.preparation.downloads / f"{self.preparation.name}_shards",
            self.urls.list_format,
            () if self.urls.annotations is None else (ANNOTATIONS,),
        )
        self.options.report(f"  {command}{' --distributor ray' if self.options.ray else ''}")

    def make_records(self, shards: list[Path]) -> None:
        """Takes over the shards that img2dataset wrote."""
        statuses: Counter[str] = Counter()

        def fill(output: OutputFolder) -> Counts:
            for path in shards:
                statuses.update(statuses_of(path))
            return self._take_compared(output, shards) if self.urls.are_compared else self._take(output, shards)

        arguments = self._arguments
        if self.urls.are_compared and self.options.verify:
            arguments |= {"held_out_contents": hashlib.sha256(b"".join(sorted(self._copies))).hexdigest()}
        if not self.urls.are_compared:
            lists = {"lists": _digests(self.tables)} if self.is_joined else {}
            arguments |= {**lists, "filters": asdict(self._shard_selection.filters)}
        arguments["shards"] = shards_digest(shards)
        folder = self.options.out / self.preparation.name
        hashed = self.urls.are_compared
        self.preparation.make(folder, arguments, fill, lambda: {"statuses": statuses}, hashed=hashed)

    def _take(self, output: OutputFolder, shards: list[Path]) -> Counts:
        """Takes over the usable records of each shard."""
        annotations, selection, rows = self.urls.annotations, self._shard_selection, None
        with RowFolder(output.out) as folder:
            if (
                self.is_joined
                and self.tables
                and annotations is not None
                and not has_annotations(shards[0], annotations)
            ):
                self.preparation.report("the shards have no annotations; they are found in the lists by the URLs")
                folder.read(partial(rows_by_address, selection, self.tables), {"rows": RawFile(self.tables[0])}, 1)
                rows = folder["rows"].path
            jobs = [ShardJob(path, output.out / path.name, selection, rows) for path in shards]
            return self._fill(output, take_shard, jobs, "shard")

    def _take_compared(self, output: OutputFolder, shards: list[Path]) -> Counts:
        """Takes over the records that are neither repeated nor, if images are verified, broken or copies of held-out images. The
        URLs of the list without an image are written to the list of missing images."""
        comparison = Comparison(_urls(self._list), self._copies)
        with closing(self._results(partial(scan_records, self.options.verify), shards, _refuse)) as results:
            bar = progress_bar(results, total=len(shards), desc=self.preparation.name, unit="shard")
            for path, scanned in zip(shards, bar, strict=True):
                kept = comparison.kept(scanned, path)
                if kept:
                    is_whole = len(kept) == scanned.counts.read["images"]
                    place_shard(path, output.out / path.name, None if is_whole else kept)
        write_missing(output.out, comparison.missing(_urls(self._list)))
        return comparison.counts

    @property
    def _list(self) -> Path:
        """The list for img2dataset, if there is only one."""
        return self.list_folder / f"{LIST}.{self.urls.list_format}"

    @property
    def _arguments(self) -> dict[str, Any]:
        """The values that determine the content of lists and shards, besides the tables and the shards."""
        arguments = self.preparation.arguments(self.files)
        unused = () if self.urls.are_compared else ("sources", "verify")
        return {key: value for key, value in arguments.items() if key not in unused}

    @property
    def _shard_selection(self) -> Selection:
        """The selection for shards. Images that were downloaded with our list have already passed the filters."""
        return replace(self.selection, filters=Filters(safety="none")) if self.has_lists else self.selection

    @cached_property
    def _copies(self) -> dict[bytes, str]:
        """The content hash of each held-out image, with its split; empty if images are not verified."""
        contents = held_out_contents(self.preparation.verified_held_out, self.preparation.held_out)
        return {bytes.fromhex(content): split for content, split in contents.items()}

    def _found_tables(self) -> tuple[list[Path], list[Path]]:
        """Returns the tables, and the folders of shards that are already downloaded.

        Raises:
            UserError: there is neither a table nor a finished shard.
        """
        folders, name = self._folders(), self.preparation.name
        patterns = ["*.parquet", *(LINES if self.urls.annotations is not None else ())]
        listed = (path for folder in folders for pattern in patterns for path in sorted(folder.glob(pattern)))
        tables = [
            path for path in listed if not path.with_suffix(".tar").exists()
        ]  # img2dataset adds one to each shard
        downloaded = [folder for folder in folders if finished_shards(folder)[0]]
        if not tables and not downloaded:
            raise UserError(
                f"neither this folder nor a folder *{name}* in it contains parquet files or finished shards of img2dataset",
                where=self.options.raw,
            )
        return tables, downloaded

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

    def _fill(self, output: OutputFolder, work: Callable[[Any], Counts], jobs: Sequence[Any], unit: str) -> Counts:
        """Runs the jobs whose target is missing, and returns the total counts of all jobs."""

        def run(left: Sequence[Any], advance: object) -> Generator[FinishedFile, None, None]:
            with closing(self._results(work, left, _refuse if self.urls.are_compared else _skip)) as results:
                yield from map(FinishedFile.of, results)

        # If URLs are compared, there is one job, which has its own progress bar.
        quiet = self.urls.are_compared
        entries = fill_with_files(output, jobs, run, quiet=quiet, desc=self.preparation.name, unit=unit)
        return Counts.of_files(entry.counts for entry in entries)

    def _results(self, work: Callable[[J], R], jobs: Iterable[J], died: Callable[[J], R]) -> Generator[R, None, None]:
        if self.options.ray is not None:
            return in_order_on_ray(work, jobs, self.options.ray, self.options.workers, died)
        return in_order(work, jobs, self.options.workers, died)


def _digests(tables: Iterable[Path]) -> dict[str, str]:
    """Returns the size and a hash of the end of each table. Reading all files (300 GB) would take as long as filtering them."""
    digests = {}
    for path in tables:
        with open_regular(path) as stream:
            size = os.fstat(stream.fileno()).st_size
            stream.seek(max(0, size - FOOTER))
            digests[path.name] = f"{size} {hashlib.sha256(stream.read()).hexdigest()}"
    return digests


def _urls(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8") as stream:
        next(stream)
        for line in stream:
            yield line.partition("\t")[0]


def _skip(job: ListJob | ShardJob) -> Counts:
    counts = Counts()
    counts.skip(DAMAGED, str(job.source), "two processes that read the file died")
    return counts


def _refuse(job: Any) -> Any:
    raise WorkerDiedError(getattr(job, "source", job))
