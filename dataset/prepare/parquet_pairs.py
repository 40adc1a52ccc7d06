"""Addresses in parquet files that are too many to be compared with each other: each file is prepared separately.

Each parquet file and each shard is a separate job, so any number of processes or machines can work on billions of pairs. An
address that is listed twice is downloaded twice.
"""

from __future__ import annotations

import hashlib
import os
import tarfile
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from dataset.image_ids import ids_in_url
from dataset.prepare.cleaning import cleaned_text
from dataset.prepare.counts import Counts
from dataset.prepare.filters import Filters
from dataset.prepare.held_out import HeldOut
from dataset.prepare.img2dataset import Form, finished_shards, is_address, place_shard, refuse_same_names
from dataset.prepare.output import Entry, OutputFolder
from dataset.prepare.preparation import Preparation
from dataset.prepare.processes import in_order
from dataset.prepare.ray_jobs import in_order_on_ray
from dataset.prepare.sets.base import ParquetPairs
from dataset.records.broken import BrokenRecordError
from dataset.records.schema import RawRecord
from dataset.shards.parquet import check_pyarrow
from dataset.shards.scanning import scan_shard
from dataset.shards.tars import read_record
from utils.errors import UserError
from utils.files import replacing
from utils.progress import progress_bar

FOOTER = 1 << 16
"""Size of the end of a parquet file that identifies it, in bytes: it has the counts and extremes of all columns."""

BATCH = 1 << 16
"""Number of rows of a parquet file that are in memory at a time."""

DAMAGED = "damaged file"
"""Reason for leaving out a whole file."""


class DamagedFileError(UserError):
    """A parquet file cannot be read."""


@dataclass(frozen=True)
class Rules:
    """Decides which pairs may be used: they pass the filters, are not held out, and are not missing elsewhere."""

    pairs: ParquetPairs
    filters: Filters
    held_out: HeldOut
    excluded: frozenset[str]

    def allow(self, row: Mapping[str, Any], counts: Counts, location: str) -> bool:
        """Returns True if a pair may be used; otherwise counts the reason."""
        url = row["url"]
        if (reason := self.filters.reason(row)) is not None:
            counts.leave_out(reason, location)
        elif "flickr" in url.lower() and (split := self.held_out.find(ids_in_url(url))) is not None:
            counts.leave_out(f"held out by {split}", location, url[:100])
        elif url in self.excluded:
            counts.leave_out("on the list of missing images", location, url[:100])
        else:
            return True
        return False


class FileJob(NamedTuple):
    """A parquet file that becomes a list of what may be used, or a shard that becomes one of the set's."""

    source: Path
    target: Path
    rules: Rules


class PairsByFile:
    """The addresses of a set (:class:`~dataset.prepare.addresses.Addresses`): parquet files, or shards that were downloaded
    before, in the folder of official files and in its folders that have the name of the set in their own name."""

    form: Form = "parquet"
    hashed = False

    def __init__(self, preparation: Preparation, pairs: ParquetPairs):
        self.preparation, self.options = preparation, preparation.options
        self.rules = Rules(pairs, self.options.filters, preparation.held_out, self.options.missing)
        folders = self._folders()
        self._lists = [path for folder in folders for path in sorted(folder.glob("*.parquet")) if not is_of_shard(path)]
        self._downloaded = [folder for folder in folders if finished_shards(folder)[0]]
        if not self._lists and not self._downloaded:
            raise UserError(
                f"{self.options.raw}: neither this folder nor a folder *{preparation.name}* in it has parquet files, or finished "
                "shards of img2dataset"
            )
        arguments = preparation.arguments({})
        self._arguments = {key: value for key, value in arguments.items() if key not in ("sources", "verify")}

    @property
    def list_path(self) -> Path:
        return self.preparation.downloads / f"{self.preparation.name}_urls"

    def list_arguments(self) -> Mapping[str, Any] | None:
        if not self._lists:
            return None
        for path in self._lists:  # a missing column is reported before the work
            try:
                columns_of(path, self.rules)
                break
            except DamagedFileError:  # skipped and counted, like later ones
                continue
        refuse_same_names(self._lists)
        if self._downloaded:
            unread = [path for folder in self._downloaded for path in finished_shards(folder)[0]]
            self.preparation.tell(
                f"{len(unread):,} finished shards are not read, since there are lists too, first {unread[0]}; to use them, give "
                "--raw a folder without the lists"
            )
        sources = {path.name: footer_digest(path) for path in self._lists}
        return {**self._arguments, "sources": sources, "filters": asdict(self.rules.filters)}

    def write_list(self, output: OutputFolder) -> Counts:
        """Writes a list for each parquet file."""
        jobs = [FileJob(path, output.out / path.name, self.rules) for path in self._lists]
        return self._fill(output, write_list, jobs, "list")

    def shard_folders(self) -> list[Path]:
        return [self.preparation.downloads / f"{self.preparation.name}_shards"] if self._lists else self._downloaded

    def shard_arguments(self) -> Mapping[str, Any]:
        return {**self._arguments, "filters": asdict(self._shard_rules.filters)}

    @property
    def _shard_rules(self) -> Rules:
        """The rules for shards. What was downloaded with our list has passed the filters."""
        if not self._lists:
            return self.rules
        return Rules(self.rules.pairs, Filters(safety="none"), self.rules.held_out, self.rules.excluded)

    def take_shards(self, output: OutputFolder, shards: list[Path]) -> Counts:
        jobs = [FileJob(path, output.out / path.name, self._shard_rules) for path in shards]
        return self._fill(output, take_shard, jobs, "shard")

    def _folders(self) -> list[Path]:
        """Returns the folders of official files: the given one, folders with the name of the set in their name, and all folders
        in these. Other folders may have the shards of other sets."""
        name, raw, found = self.preparation.name, self.options.raw, []
        for root, folders, _ in os.walk(raw, followlinks=True):
            folder, made = Path(root), os.path.realpath(root) == os.path.realpath(self.options.out)
            folders[:] = [] if made else sorted(folders)
            parts = [raw.resolve().name, *folder.relative_to(raw).parts]
            if not made and (folder == raw or any(name in part.lower() for part in parts)):
                found.append(folder)
        return found

    def _fill(
        self, output: OutputFolder, work: Callable[[FileJob], Counts], jobs: Sequence[FileJob], unit: str
    ) -> Counts:
        """Does the jobs whose files are missing; returns the counts of all jobs."""
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
    """Returns the size and a hash of the end of a parquet file. Reading all of 300 GB would take as long as filtering them."""
    with path.open("rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        stream.seek(max(0, size - FOOTER))
        return f"{size} {hashlib.sha256(stream.read()).hexdigest()}"


def _died(job: FileJob) -> Counts:
    counts = Counts()
    counts.leave_out(DAMAGED, str(job.source), "two processes that read it died")
    return counts


def columns_of(path: Path, rules: Rules) -> dict[str, str]:
    """Returns the names of the columns in a parquet file, by our names.

    Raises:
        UserError: pyarrow is not installed, the file is damaged, or a column is missing.
    """
    names = {name.lower(): name for name in _parquet(path).schema_arrow.names}
    found = {
        ours: names[theirs]
        for ours, those in rules.pairs.columns.items()
        for theirs in reversed(those)
        if theirs in names
    }
    missing = [name for name in ("url", "text", *rules.filters.needed) if name not in found]
    if missing:
        remedy = "; for lists without tags of safety, give --safety none" if "safety" in missing else ""
        raise UserError(
            f"{path} has no column for {', '.join(missing)}; its columns: {', '.join(names.values())}{remedy}"
        )
    return found


def _parquet(path: Path) -> Any:
    check_pyarrow("laion")
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.ParquetFile(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise DamagedFileError(
            f"{path} is not a complete parquet file ({str(error).splitlines()[0]}); download it again"
        ) from None


def write_list(job: FileJob) -> Counts:
    """Writes the pairs of a parquet file that may be used, with cleaned captions; runs in a worker process, on any machine.

    A damaged file is skipped and counted.
    """
    import pyarrow
    import pyarrow.parquet

    counts = Counts()
    schema = pyarrow.schema([("url", pyarrow.string()), ("caption", pyarrow.string())])
    try:
        columns = columns_of(job.source, job.rules)
        with replacing(job.target) as part, pyarrow.parquet.ParquetWriter(part, schema) as writer:
            for rows in _batches(job.source, columns):
                pairs = list(_usable(rows, job.rules, counts))
                counts.made["pairs"] += len(pairs)
                made = [pyarrow.array(list(column), pyarrow.string()) for column in zip(*pairs, strict=True)]
                if pairs:
                    writer.write_batch(pyarrow.record_batch(made, schema=schema))
    except (OSError, DamagedFileError, pyarrow.ArrowException) as error:
        if isinstance(error, OSError) and error.filename:
            raise  # the disk is at fault, not the file
        counts = Counts()
        counts.leave_out(DAMAGED, str(job.source), str(error).splitlines()[0])
    return counts


def _batches(path: Path, columns: Mapping[str, str]) -> Iterator[list[tuple[str, dict[str, Any]]]]:
    """Yields the rows of a file by our names of the columns, each with its location."""
    number = 0
    for batch in _parquet(path).iter_batches(BATCH, columns=list(columns.values())):
        values = [batch.column(batch.schema.names.index(name)).to_pylist() for name in columns.values()]
        rows = [dict(zip(columns, row, strict=True)) for row in zip(*values, strict=True)]
        yield [(f"{path}: row {number + index}", row) for index, row in enumerate(rows)]
        number += len(rows)


def _usable(rows: list[tuple[str, dict[str, Any]]], rules: Rules, counts: Counts) -> Iterator[tuple[str, str]]:
    """Yields address and cleaned caption of each pair that may be used."""
    counts.read["pairs"] += len(rows)
    for location, row in rows:
        url = row["url"]
        if not isinstance(url, str) or not is_address(url):
            counts.leave_out("no address", location, repr(url)[:60])
        elif rules.allow(row, counts, location):
            text = cleaned_text(row["text"] or "", counts, location)
            if text is not None:
                yield url, text


def take_shard(job: FileJob) -> Counts:
    """Puts a shard of img2dataset in place, linked if all its records may be used; runs in a worker process, on any machine.

    The JSON members have addresses, sizes, and further columns of the list that img2dataset has kept. A damaged shard is
    skipped and counted.
    """
    counts, kept = Counts(), set[str]()  # only names, since the images of a shard would fill the memory of a process
    try:
        for record in _records(job.source, counts):
            if _may_be_used(record, job.rules, counts):
                kept.add(record.location.removeprefix(f"{job.source}:").partition(".")[0])
                counts.made["records"] += 1
    except (UserError, tarfile.TarError, ValueError) as error:
        counts = Counts()
        counts.leave_out(DAMAGED, str(job.source), str(error))
        return counts
    counts.made["images"] = counts.made["records"]
    if kept:
        place_shard(job.source, job.target, kept if counts.made["images"] < counts.read["images"] else None)
    return counts


def _records(path: Path, counts: Counts) -> Iterator[RawRecord]:
    scanned = scan_shard(path, str(path))
    with path.open("rb") as file:
        for span, apart in scanned.records(path.stat().st_size):
            counts.read["images"] += 1
            try:
                yield read_record(file, path, span, apart)
            except BrokenRecordError as error:
                counts.leave_out(error.kind, error.location, error.message)


def _may_be_used(record: RawRecord, rules: Rules, counts: Counts) -> bool:
    values = {name.lower(): value for name, value in record.values.items()}
    row: dict[str, Any] = {
        ours: next((values[name] for name in names if name in values), None)
        for ours, names in rules.pairs.in_shards.items()
    }
    row["url"] = str(row["url"] or "")
    if record.image is None:
        counts.leave_out("missing image", record.location, row["url"][:100])
        return False
    return rules.allow(row, counts, record.location)
