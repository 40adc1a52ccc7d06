"""Official lists of URLs and captions: which pairs may be used, and the lists of these pairs for img2dataset.

Each official list becomes one list for img2dataset, in a separate job, so that any number of processes or machines can work on
billions of pairs.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from batches.base import BrokenRecord
from dataset.broken import BrokenRecordError, broken_record
from dataset.image_ids import ids_in_url
from dataset.prepare.cleaning import cleaned_text
from dataset.prepare.counts import Counts
from dataset.prepare.declarations import Files, Urls
from dataset.prepare.file_jobs import FileJob
from dataset.prepare.filters import Filters
from dataset.prepare.held_out import HeldOut
from dataset.prepare.img2dataset import is_url
from dataset.prepare.parquet_rows import DamagedFileError, Rows, open_parquet, parquet_batches
from dataset.prepare.raw_folder import RawFile
from dataset.prepare.rows import KeyedRow
from dataset.records.schema import parse_object
from dataset.shards.parquet import check_names
from utils.errors import UserError
from utils.files import replacing
from utils.progress import progress_bar

LINE_BATCH, PAIR_BATCH = 1 << 12, 1 << 7
"""Numbers of JSON lines and of pairs that are in memory at a time. With more pairs, each batch would cause a garbage
collection."""

LINES = ("*.jsonl", "*.jsonl.gz")
"""Names of lists that are JSON lines."""

ANNOTATIONS = "annotations"
"""Column of a list, and key in a shard, that contains the annotations as JSON text."""

ROW_KIND = "row"
"""Kind of all rows in the file of rows by URL."""

DAMAGED = "damaged file"
"""Reason for skipping an entire file."""

Pairs = list[tuple[str, ...]]
"""URLs with captions, and with annotations if the data set has any."""


@dataclass(frozen=True)
class Selection:
    """Decides which pairs may be used: pairs that pass the filters, are not held out, and are not on the list of missing
    images."""

    urls: Urls
    filters: Filters
    held_out: HeldOut
    excluded: frozenset[str]

    def allow(self, row: Mapping[str, Any], counts: Counts, location: str) -> bool:
        """Returns True if a pair may be used; otherwise counts the reason."""
        url = row["url"]
        if (reason := self.filters.reason(row)) is not None:
            counts.skip(reason, location)
        elif "flickr" in url.lower() and (split := self.held_out.find(ids := ids_in_url(url))) is not None:
            detail = "; ".join(filter(None, (url[:100], self.held_out.linked(ids))))
            counts.skip(f"held out by {split}", location, detail)
        elif url in self.excluded:
            counts.skip("on the list of missing images", location, url[:100])
        else:
            return True
        return False


@dataclass(frozen=True)
class ListJob(FileJob):
    """An official list, which may consist of several parallel ``files``, to convert to a list for img2dataset. The source is the
    first of these files.

    ``name`` and ``total`` are the name of the data set and the expected number of pairs, for a progress bar; ``total`` is None if
    several lists are converted at a time.
    """

    source: Path
    files: Files
    selection: Selection
    name: str = ""
    total: int | None = None


def write_list(job: ListJob) -> Counts:
    """Writes the pairs of an official list that may be used, with cleaned captions; runs in a worker process, on any machine.

    A damaged table is skipped and counted.
    """
    counts, seen = Counts(), set[int]()
    try:
        rows = _rows(job, counts)
        with replacing(job.target) as part, _list_writer(part, job.selection.urls) as write:
            for batch in rows:
                pairs = list(_usable(batch, job.selection, counts, seen))
                counts.written["pairs"] += len(pairs)
                write(pairs)
    except DamagedFileError as error:
        counts = Counts()
        counts.skip(DAMAGED, str(job.source), str(error).splitlines()[0])
    return counts


def _rows(job: ListJob, counts: Counts) -> Iterator[Rows]:
    """Yields the rows of an official list under our column names, each with its location, and counts them."""
    urls = job.selection.urls
    if urls.read is None:
        yield from table_rows(job.source, columns_of(job.source, job.selection), counts)
        return
    pairs = urls.read(job.files, counts)
    if job.total is not None:
        pairs = iter(progress_bar(pairs, total=job.total, desc=job.name, unit="pair"))
    while batch := [
        (pair.location, {"url": pair.url, "text": pair.caption}) for pair in itertools.islice(pairs, PAIR_BATCH)
    ]:
        yield batch


def _usable(rows: Rows, selection: Selection, counts: Counts, seen: set[int]) -> Iterator[tuple[str, ...]]:
    """Yields URL and cleaned caption of each pair that may be used, and its annotations as JSON text.

    Args:
        rows: the rows, each with its location.
        selection: decides which pairs may be used.
        counts: counts the reasons for skipping rows.
        seen: hashes of the rows that were used so far, to find duplicates. The hashes of ``rows`` are added.
    """
    urls, annotations = selection.urls, selection.urls.annotations
    for location, row in rows:
        url, content = row["url"], ""
        if not isinstance(url, str) or not is_url(url):
            counts.skip("no address", location, repr(url)[:60])
            continue
        if not selection.allow(row, counts, location):
            continue
        if annotations is not None:
            if annotations.needs and _is_blank(row[annotations.needs]):
                counts.skip(f"no {annotations.needs}", location, url[:100])
                continue
            content = json.dumps({name: row[name] for name in annotations.columns}, ensure_ascii=False)
        digest = hash((url, content))
        if digest in seen:
            counts.skip("duplicate row" if annotations is not None else "duplicate address", location, url[:100])
            continue
        text = str(row["text"] or "") if annotations is not None else cleaned_text(row["text"] or "", counts, location)
        if text is None:
            continue
        if urls.are_compared or annotations is not None:
            seen.add(digest)
        yield (url, text) if annotations is None else (url, text, content)


def _is_blank(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


@contextmanager
def _list_writer(path: Path, urls: Urls) -> Iterator[Callable[[Pairs], object]]:
    """Context manager that creates a list for img2dataset, and returns a function that appends pairs to it."""
    if urls.list_format == "tsv":
        with path.open("w", encoding="utf-8", newline="\n") as stream:
            stream.write("url\tcaption\n")

            def write_lines(pairs: Pairs) -> None:
                stream.writelines(f"{url}\t{text}\n" for url, text in pairs)

            yield write_lines
        return
    import pyarrow
    import pyarrow.parquet

    names = ["url", "caption", *([ANNOTATIONS] if urls.annotations is not None else [])]
    schema = pyarrow.schema([(name, pyarrow.string()) for name in names])
    with pyarrow.parquet.ParquetWriter(path, schema) as writer:

        def write_batch(pairs: Pairs) -> None:
            columns = [pyarrow.array(list(column), pyarrow.string()) for column in zip(*pairs, strict=True)]
            if pairs:
                writer.write_batch(pyarrow.record_batch(columns, schema=schema))

        yield write_batch


# -- tables: Parquet files and JSON lines


def list_stem(path: Path) -> str:
    """Returns the name of a list without its suffixes."""
    return path.name.removesuffix(".gz").rpartition(".")[0]


def columns_of(path: Path, selection: Selection) -> dict[str, str]:
    """Returns a mapping from our column names to the names in a table. Columns of annotations keep their names.

    Raises:
        UserError: pyarrow is not installed, the file is damaged, or a column is missing or occurs twice, ignoring case.
    """
    given = open_parquet(path).schema_arrow.names if path.suffix == ".parquet" else _keys_of_lines(path)
    names = {name.lower(): name for name in given}
    check_names([name.lower() for name in given], str(path))
    found = {
        ours: names[name]
        for ours, alternatives in selection.urls.columns.items()
        for name in reversed(alternatives)
        if name in names
    }
    missing = [name for name in ("url", "text", *selection.filters.needed) if name not in found]
    annotations = selection.urls.annotations.columns if selection.urls.annotations is not None else ()
    missing += [name for name in annotations if name not in names]
    if missing:
        remedy = "; for lists without safety tags, pass --safety none" if "safety" in missing else ""
        raise UserError(
            f"{path} has no column for {', '.join(missing)}", remedy=f"its columns: {', '.join(names.values())}{remedy}"
        )
    return found | {name: names[name] for name in annotations if name not in found}


def table_rows(path: Path, columns: Mapping[str, str], counts: Counts) -> Iterator[Rows]:
    """Yields the rows of a table under our column names, each with its location, and counts them. Lines that are not JSON are
    skipped."""
    if path.suffix == ".parquet":
        for rows in parquet_batches(path, columns):
            counts.read["pairs"] += len(rows)
            yield rows
        return
    lines = _lines(path)
    while batch := list(itertools.islice(lines, LINE_BATCH)):
        counts.read["pairs"] += len(batch)
        rows = []
        for location, values in batch:
            if isinstance(values, BrokenRecord):
                counts.skip_broken(values)
            else:
                rows.append((location, {ours: values.get(name) for ours, name in columns.items()}))
        yield rows


def _keys_of_lines(path: Path) -> list[str]:
    """Returns the keys of the first object of JSON lines."""
    for _, values in itertools.islice(_lines(path), 100):
        if not isinstance(values, BrokenRecord):
            return list(values)
    raise DamagedFileError(f"{path}: none of the first lines is a JSON object; download it again")


def _lines(path: Path) -> Iterator[tuple[str, dict[str, Any] | BrokenRecord]]:
    """Yields the objects of JSON lines, each with its location."""
    try:
        with RawFile(path).open() as stream:
            for number, line in enumerate(stream, start=1):
                location = f"{path}:{number}"
                try:
                    if line.strip():
                        yield location, parse_object(line)
                except BrokenRecordError as error:
                    yield location, broken_record(error, location)
    except UserError as error:
        raise DamagedFileError(str(error)) from None


def rows_by_address(
    selection: Selection, lists: Sequence[Path], name: str, file: RawFile, counts: Counts
) -> Iterator[KeyedRow]:
    """Yields the annotations of all rows of the lists, as JSON text under their URL."""
    assert selection.urls.annotations is not None
    for path in lists:
        for rows in table_rows(path, columns_of(path, selection), Counts()):
            for location, row in rows:
                content = {name: row[name] for name in selection.urls.annotations.columns}
                yield KeyedRow(ROW_KIND, str(row["url"]), location, json.dumps(content, ensure_ascii=False))
