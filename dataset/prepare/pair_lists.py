"""Lists of URLs and captions: reads Parquet files and JSON lines, and writes the rows that may be used to a list for
img2dataset."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from dataset.image_ids import ids_in_url
from dataset.prepare.cleaning import cleaned_text
from dataset.prepare.counts import Counts
from dataset.prepare.filters import Filters
from dataset.prepare.held_out import HeldOut
from dataset.prepare.img2dataset import is_url
from dataset.prepare.parquet_rows import DamagedFileError, Rows, open_parquet, parquet_batches
from dataset.prepare.raw_folder import RawFile
from dataset.prepare.rows import Row
from dataset.prepare.sets.base import ParquetPairs
from dataset.records.broken import BrokenRecordError
from dataset.shards.parquet import check_names
from dataset.shards.tars import parse_object
from utils.errors import UserError
from utils.files import replacing

LINE_BATCH = 1 << 12
"""Number of JSON lines that are in memory at a time."""

LINES = ("*.jsonl", "*.jsonl.gz")
"""Names of lists that are JSON lines."""

ANNOTATIONS = "annotations"
"""Column of a list, and key in a shard, that contains the annotations as JSON text."""

ROW_KIND = "row"
"""Kind of all rows in the file of rows by URL."""

DAMAGED = "damaged file"
"""Reason for skipping an entire file."""


@dataclass(frozen=True)
class Selection:
    """Decides which pairs may be used: pairs that pass the filters, are not held out, and are not on the list of missing
    images."""

    pairs: ParquetPairs
    filters: Filters
    held_out: HeldOut
    excluded: frozenset[str]

    def allow(self, row: Mapping[str, Any], counts: Counts, location: str) -> bool:
        """Returns True if a pair may be used; otherwise counts the reason."""
        url = row["url"]
        if (reason := self.filters.reason(row)) is not None:
            counts.skip(reason, location)
        elif "flickr" in url.lower() and (split := self.held_out.find(ids_in_url(url))) is not None:
            counts.skip(f"held out by {split}", location, url[:100])
        elif url in self.excluded:
            counts.skip("on the list of missing images", location, url[:100])
        else:
            return True
        return False


class FileJob(NamedTuple):
    """A list or an img2dataset shard to convert from ``source`` to ``target``. ``rows`` is the file of rows by URL for shards
    without annotations."""

    source: Path
    target: Path
    selection: Selection
    rows: Path | None = None


def list_stem(path: Path) -> str:
    """Returns the name of a list without its suffixes."""
    return path.name.removesuffix(".gz").rpartition(".")[0]


def columns_of(path: Path, selection: Selection) -> dict[str, str]:
    """Returns a mapping from our column names to the names in a list. Columns of annotations keep their names.

    Raises:
        UserError: pyarrow is not installed, the file is damaged, or a column is missing or occurs twice, ignoring case.
    """
    listed = path.suffix == ".parquet"
    given = open_parquet(path).schema_arrow.names if listed else _keys_of_lines(path)
    names = {name.lower(): name for name in given}
    check_names([name.lower() for name in given], str(path))
    found = {
        ours: names[name]
        for ours, alternatives in selection.pairs.columns.items()
        for name in reversed(alternatives)
        if name in names
    }
    missing = [name for name in ("url", "text", *selection.filters.needed) if name not in found]
    annotations = selection.pairs.annotations.columns if selection.pairs.annotations is not None else ()
    missing += [name for name in annotations if name not in names]
    if missing:
        remedy = "; for lists without safety tags, pass --safety none" if "safety" in missing else ""
        raise UserError(
            f"{path} has no column for {', '.join(missing)}", remedy=f"its columns: {', '.join(names.values())}{remedy}"
        )
    return found | {name: names[name] for name in annotations if name not in found}


def _keys_of_lines(path: Path) -> list[str]:
    """Returns the keys of the first object of JSON lines."""
    for _, row in itertools.islice(_lines(path), 100):
        if not isinstance(row, BrokenRecordError):
            return list(row)
    raise DamagedFileError(f"{path}: none of the first lines is a JSON object; download it again")


def _lines(path: Path) -> Iterator[tuple[str, dict[str, Any] | BrokenRecordError]]:
    """Yields the objects of JSON lines, each with its location."""
    try:
        with RawFile(path).open() as stream:
            for number, line in enumerate(stream, start=1):
                location = f"{path}:{number}"
                try:
                    if line.strip():
                        yield location, parse_object(line, location)
                except BrokenRecordError as error:
                    yield location, error
    except UserError as error:
        raise DamagedFileError(str(error)) from None


def write_list(job: FileJob) -> Counts:
    """Writes the pairs of a list that may be used, with cleaned captions; runs in a worker process, on any machine.

    A damaged file is skipped and counted.
    """
    import pyarrow
    import pyarrow.parquet

    counts = Counts()
    names = ["url", "caption", *([ANNOTATIONS] if job.selection.pairs.annotations is not None else [])]
    schema = pyarrow.schema([(name, pyarrow.string()) for name in names])
    try:
        columns = columns_of(job.source, job.selection)
        with replacing(job.target) as part, pyarrow.parquet.ParquetWriter(part, schema) as writer:
            seen: set[int] = set()
            for rows in batches(job.source, columns, counts):
                pairs = list(_usable(rows, job.selection, counts, seen))
                counts.written["pairs"] += len(pairs)
                made = [pyarrow.array(list(column), pyarrow.string()) for column in zip(*pairs, strict=True)]
                if pairs:
                    writer.write_batch(pyarrow.record_batch(made, schema=schema))
    except (OSError, DamagedFileError, pyarrow.ArrowException) as error:
        if isinstance(error, OSError) and error.filename:
            raise  # the disk is at fault, not the file
        counts = Counts()
        counts.skip(DAMAGED, str(job.source), str(error).splitlines()[0])
    return counts


def batches(path: Path, columns: Mapping[str, str], counts: Counts) -> Iterator[Rows]:
    """Yields the rows of a file under our column names, each with its location. Lines that are not JSON are counted."""
    if path.suffix == ".parquet":
        yield from parquet_batches(path, columns)
        return
    rows: Rows = []
    for location, row in _lines(path):
        if isinstance(row, BrokenRecordError):
            counts.read["pairs"] += 1
            counts.skip_broken(row)
            continue
        rows.append((location, {ours: row.get(name) for ours, name in columns.items()}))
        if len(rows) == LINE_BATCH:
            yield rows
            rows = []
    yield rows


def _usable(rows: Rows, selection: Selection, counts: Counts, seen: set[int]) -> Iterator[tuple[str, ...]]:
    """Yields URL and cleaned caption of each pair that may be used, and its annotations as JSON text.

    Args:
        rows: the rows, each with its location.
        selection: decides which pairs may be used.
        counts: counts the rows, and the reasons for skipping rows.
        seen: hashes of the annotated rows that were read from the file so far. The hashes of ``rows`` are added.
    """
    counts.read["pairs"] += len(rows)
    annotations = selection.pairs.annotations
    for location, row in rows:
        url = row["url"]
        if not isinstance(url, str) or not is_url(url):
            counts.skip("no address", location, repr(url)[:60])
        elif selection.allow(row, counts, location):
            if annotations is None:
                text = cleaned_text(row["text"] or "", counts, location)
                if text is not None:
                    yield url, text
                continue
            if annotations.needs and _is_blank(row[annotations.needs]):
                counts.skip(f"no {annotations.needs}", location, url[:100])
                continue
            content = json.dumps({name: row[name] for name in annotations.columns}, ensure_ascii=False)
            if (digest := hash((url, content))) in seen:
                counts.skip("duplicate row", location, url[:100])
                continue
            seen.add(digest)
            yield url, str(row["text"] or ""), content


def _is_blank(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def rows_by_address(
    selection: Selection, lists: Sequence[Path], name: str, file: RawFile, counts: Counts
) -> Iterator[Row]:
    """Yields the annotations of all rows of the lists, as JSON text under their URL."""
    assert selection.pairs.annotations is not None
    for path in lists:
        for rows in batches(path, columns_of(path, selection), counts):
            for location, row in rows:
                content = {name: row[name] for name in selection.pairs.annotations.columns}
                yield Row(ROW_KIND, str(row["url"]), location, json.dumps(content, ensure_ascii=False))
