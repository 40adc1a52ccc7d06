"""Sets that are too large to be compared as a whole: each file is prepared by itself, by processes or by machines."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from dataset.prepare.building import build_folder
from dataset.prepare.counts import Counts
from dataset.prepare.downloads import command_of_list, finished_shards, shards_digest, statuses_of
from dataset.prepare.folder_index import write_folder_index
from dataset.prepare.manifest import Manifest
from dataset.prepare.output import Entry, OutputFolder
from dataset.prepare.processes import in_order
from dataset.prepare.ray_jobs import in_order_on_ray
from dataset.prepare.results import tell_result
from dataset.prepare.sets.laion import (
    DAMAGED,
    DamagedFileError,
    Filters,
    Job,
    Rules,
    columns_of,
    take_shard,
    write_list,
)
from utils.errors import UserError
from utils.progress import progress_bar

FOOTER = 1 << 16
"""Bytes at the end of a parquet file by which it is known: they have the counts and extremes of all its columns."""


class FileSet:
    """LAION's lists of addresses below a folder, or shards that were downloaded before.

    Args:
        name: of the set.
        raw: the folder.
        out: of the folders that are made.
        downloads: the folder for lists, and for what is downloaded by them.
        rules: which pairs may be used.
        arguments: what else decides the content, as JSON values.
        facts: entries of the manifests.
        workers: processes.
        ray: address of a Ray cluster on whose machines the work is done, "local" for this one; None: processes.
        overwrite: make anew what is there.
        tell: called with each line for the user.
    """

    def __init__(
        self,
        name: str,
        raw: Path,
        out: Path,
        downloads: Path,
        *,
        rules: Rules,
        arguments: Mapping[str, Any],
        facts: Mapping[str, Any],
        workers: int,
        ray: str | None,
        overwrite: bool,
        tell: Callable[[str], object],
    ):
        self.name, self.raw, self.out, self.downloads, self.rules = name, raw, out, downloads, rules
        self.arguments, self.facts = dict(arguments), dict(facts)
        self.workers, self.ray, self.overwrite, self.tell = workers, ray, overwrite, tell

    def prepare(self) -> list[Manifest]:
        """Make the lists, if there are parquet files; once there are shards, make the folder of records.

        Returns:
            The manifests of what was not there before.
        """
        folders = self._folders()
        lists = [path for folder in folders for path in sorted(folder.glob("*.parquet")) if not is_of_shard(path)]
        listed = self._lists(lists) if lists else None
        if lists and (unread := [path for folder in folders for path in finished_shards(folder)[0]]):
            self.tell(
                f"{self.name}: {len(unread):,} finished shards are not read, since there are lists too, first "
                f"{unread[0]}; to take them, give --raw a folder without the lists"
            )
        made = [listed] if listed is not None else []
        downloaded = self.downloads / f"{self.name}_shards"
        shards = self._finished([downloaded] if lists else folders)
        if not shards and not lists:
            raise UserError(
                f"{self.raw}: neither there nor in folders *{self.name}* are parquet files, or finished shards of img2dataset"
            )
        if not shards:
            self.tell(
                f"{self.name}: download the images with img2dataset (pip install img2dataset), then give this command again:"
            )
            self.tell(
                f"  {command_of_list(self._urls, downloaded, 'parquet')}{' --distributor ray' if self.ray else ''}"
            )
            return made
        # The list had only what may be used: what was downloaded by it is not judged by its columns again.
        rules = Rules(Filters(safety="none"), self.rules.held_out, self.rules.excluded) if lists else self.rules
        manifest = self._shards(shards, rules)
        return [*made, *([manifest] if manifest is not None else [])]

    def _folders(self) -> list[Path]:
        """The folders of official files: that which was given itself, those whose name has the set's in it, and what is below
        these. Other folders may hold the shards of other sets."""
        found = []
        for root, folders, _ in os.walk(self.raw, followlinks=True):
            folder, made = Path(root), os.path.realpath(root) == os.path.realpath(self.out)
            folders[:] = [] if made else sorted(folders)
            named = [self.raw.resolve().name, *folder.relative_to(self.raw).parts]
            is_named = folder == self.raw or any(self.name in name.lower() for name in named)
            if is_named and not made:
                found.append(folder)
        return found

    def _finished(self, folders: Sequence[Path]) -> list[Path]:
        shards = []
        for folder in folders:
            finished, unfinished = finished_shards(folder) if folder.is_dir() else ([], [])
            shards += finished
            if unfinished:
                self.tell(f"{self.name}: {len(unfinished)} shards are unfinished and left out, first {unfinished[0]}")
        self._refuse_same_names(shards)
        return shards

    @property
    def _urls(self) -> Path:
        return self.downloads / f"{self.name}_urls"

    def _lists(self, files: Sequence[Path]) -> Manifest | None:
        for path in files:  # a column that is missing is told before the work
            try:
                columns_of(path, self.rules.filters)
                break
            except DamagedFileError:  # left out and counted, as those that come later
                continue
        self._refuse_same_names(files)
        sources = {str(path): footer_digest(path) for path in files}
        arguments = {**self.arguments, "sources": sources, "filters": self.rules.as_values()}

        def fill(folder: OutputFolder) -> Counts:
            jobs = [Job(path, folder.out / path.name, self.rules) for path in files]
            return self._fill(folder, write_list, jobs, "list")

        name = self._urls.name
        made = build_folder(self.downloads, name, arguments, fill, overwrite=self.overwrite, facts=lambda: self.facts)
        tell_result(self._urls, made, {}, self.tell)
        return made

    def _shards(self, shards: Sequence[Path], rules: Rules) -> Manifest | None:
        statuses = Counts()
        arguments = {**self.arguments, "shards": shards_digest(list(shards)), "filters": rules.as_values()}

        def fill(folder: OutputFolder) -> Counts:
            jobs = [Job(path, folder.out / path.name, rules) for path in shards]
            for path in shards:
                statuses.read.update(statuses_of(path))
            return self._fill(folder, take_shard, jobs, "shard")

        def facts() -> dict[str, Any]:
            return {**self.facts, "statuses": dict(statuses.read)}

        made = build_folder(self.out, self.name, arguments, fill, overwrite=self.overwrite, facts=facts, hashed=False)
        write_folder_index(self.out / self.name, self.workers)
        tell_result(self.out / self.name, made, {}, self.tell)
        return made

    def _fill(self, folder: OutputFolder, work: Callable[[Job], Counts], jobs: Sequence[Job], unit: str) -> Counts:
        """Do the jobs whose files are not there; returns the counts of all."""
        done = {entry.file: Counts.from_values(entry.counts) for entry in folder.entries.values()}
        left = [job for job in jobs if job.target.name not in done]
        with closing(self._results(work, left)) as results:
            bar = progress_bar(results, total=len(jobs), initial=len(jobs) - len(left), desc=self.name, unit=unit)
            for job, counts in zip(left, bar, strict=True):
                size = job.target.stat().st_size if job.target.exists() else 0
                folder.add(Entry(job.target.name, "", 0, size, counts.to_values()))
                done[job.target.name] = counts
        total = Counts()
        for name in sorted(done):
            total.add(done[name])
        return total

    def _results(self, work: Callable[[Job], Counts], jobs: Iterable[Job]) -> Generator[Counts, None, None]:
        if self.ray is not None:
            return in_order_on_ray(work, jobs, self.ray, self.workers, _died)
        return in_order(work, jobs, self.workers, _died)

    def _refuse_same_names(self, files: Sequence[Path]) -> None:
        first: dict[str, Path] = {}
        for path in files:
            if (other := first.setdefault(path.name, path)) != path:
                raise UserError(f"{other} and {path} have one name; rename one of them, or prepare the sets one by one")


def is_of_shard(path: Path) -> bool:
    """Whether a parquet file is what img2dataset writes beside a shard."""
    return path.with_suffix(".tar").exists()


def footer_digest(path: Path) -> str:
    """The size and a hash of the end of a parquet file: to read some 300 GB would take as long as to filter them."""
    with path.open("rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        stream.seek(max(0, size - FOOTER))
        return f"{size} {hashlib.sha256(stream.read()).hexdigest()}"


def _died(job: Job) -> Counts:
    counts = Counts()
    counts.leave_out(DAMAGED, str(job.source), "it ended a process that read it, twice")
    return counts
