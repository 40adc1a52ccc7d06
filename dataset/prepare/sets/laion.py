"""LAION-400M and LAION-2B: lists of addresses in parquet files, and the shards that img2dataset downloads by them.

Each file and each shard is a job by itself, and nothing is compared across pairs, so that any number of processes, or of
machines, can work on billions of them. An address that is listed twice is downloaded twice.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from dataset.image_ids import ids_in_url
from dataset.prepare.cleaning import cleaned_text
from dataset.prepare.counts import Counts
from dataset.prepare.downloads import is_address, place_shard
from dataset.prepare.held_out import HeldOut
from dataset.prepare.sets.base import DataSet
from dataset.records.broken import BrokenRecordError
from dataset.records.schema import RawRecord
from dataset.shards.scanning import scan_shard
from dataset.shards.tars import read_record
from utils.errors import UserError
from utils.files import replacing

BATCH = 1 << 16
"""Rows of a parquet file that are in memory at a time."""

DAMAGED = "damaged file"
"""Reason for which a whole file is left out."""

Safety = Literal["none", "NSFW", "UNSURE"]

_NAMES = {
    "url": ("url",),
    "text": ("text", "caption", "top_caption"),
    "width": ("width",),
    "height": ("height",),
    "similarity": ("similarity",),
    "safety": ("nsfw",),
    "unsafe": ("punsafe",),
    "watermark": ("pwatermark",),
}
"""Names of columns in lower case: releases differ."""

_IN_SHARDS = {**_NAMES, "width": ("original_width", "width"), "height": ("original_height", "height")}
"""Names in the JSON of a shard, where width and height are those of the resized image."""


class DamagedFileError(UserError):
    """A parquet file that cannot be read."""


@dataclass(frozen=True)
class Filters:
    """Pairs that are left out. The paper says that LAION was filtered (section 4.1), and not how: none of the values is its own.

    Args:
        min_side: pixels that the shorter side of an image has, as the list says; 0: any.
        min_similarity: of image and text, by CLIP, as the list says; -1: any.
        safety: the tags that are left out: "NSFW", "UNSURE" (and NSFW), or "none".
        max_unsafe: probability of an unsafe image; 1: any.
        max_watermark: probability of a watermark; 1: any.
    """

    min_side: int = 0
    min_similarity: float = -1.0
    safety: Safety = "NSFW"
    max_unsafe: float = 1.0
    max_watermark: float = 1.0

    @property
    def needed(self) -> list[str]:
        """The columns without which these filters cannot be applied."""
        asked = {
            "width": self.min_side > 0,
            "height": self.min_side > 0,
            "similarity": self.min_similarity > -1,
            "safety": self.safety != "none",
            "unsafe": self.max_unsafe < 1,
            "watermark": self.max_watermark < 1,
        }
        return [name for name, is_asked in asked.items() if is_asked]

    def reason(self, row: Mapping[str, Any]) -> str | None:
        """Why a pair is left out, by its columns; None if it is not. A value that is not there is not good enough."""
        if self.min_side and min(_number(row.get("width")), _number(row.get("height"))) < self.min_side:
            return f"side below {self.min_side}"
        if self.min_similarity > -1 and not _number(row.get("similarity"), -2) >= self.min_similarity:
            return f"similarity below {self.min_similarity}"
        tag = str(row.get("safety") or "").upper()
        if self.safety != "none" and (tag in ("NSFW", "") or tag == self.safety):
            return f"tagged {tag}" if tag else "without a tag of safety"
        for name, most in (("unsafe", self.max_unsafe), ("watermark", self.max_watermark)):
            if most < 1 and not _number(row.get(name), 2) <= most:
                return f"{name} above {most}"
        return None


def _number(value: Any, otherwise: float = 0) -> float:
    """A number, or ``otherwise`` for what is none."""
    try:
        number = otherwise if isinstance(value, bool) else float(value)  # some lists have decimals, or numbers as texts
    except (TypeError, ValueError, OverflowError):
        return otherwise
    return number if number == number else otherwise


@dataclass(frozen=True)
class Rules:
    """Which pairs may be used: by the filters, not held out, and not on the list of images that others miss."""

    filters: Filters
    held_out: HeldOut
    excluded: frozenset[str]

    def allows(self, row: Mapping[str, Any], counts: Counts, place: str) -> bool:
        """Whether a pair may be used; counted if not."""
        url = row["url"]
        if (reason := self.filters.reason(row)) is not None:
            counts.leave_out(reason, place)
        elif "flickr" in url.lower() and (split := self.held_out.find(ids_in_url(url))) is not None:
            counts.leave_out(f"held out by {split}", place, url[:100])
        elif url in self.excluded:
            counts.leave_out("on the list of missing images", place, url[:100])
        else:
            return True
        return False

    def as_values(self) -> dict[str, Any]:
        """The filters, as JSON values."""
        return asdict(self.filters)


class Job(NamedTuple):
    """A parquet file that becomes a list of what may be used, or a shard that becomes one of the set's."""

    source: Path
    target: Path
    rules: Rules


def columns_of(path: Path, filters: Filters) -> dict[str, str]:
    """The names of the columns in a parquet file, by our names.

    Raises:
        UserError: pyarrow is not installed, the file is damaged, or lacks a column.
    """
    names = {name.lower(): name for name in _parquet(path).schema_arrow.names}
    found = {ours: names[theirs] for ours, those in _NAMES.items() for theirs in reversed(those) if theirs in names}
    missing = [name for name in ("url", "text", *filters.needed) if name not in found]
    if missing:
        remedy = "; for lists without tags of safety, give --safety none" if "safety" in missing else ""
        raise UserError(
            f"{path} has no column for {', '.join(missing)}; its columns: {', '.join(names.values())}{remedy}"
        )
    return found


def _parquet(path: Path) -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError('laion: needs pyarrow, which is not installed: pip install ".[laion]"') from None
    try:
        return pyarrow.parquet.ParquetFile(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise DamagedFileError(
            f"{path} is no whole parquet file ({str(error).splitlines()[0]}); download it again"
        ) from None


def write_list(job: Job) -> Counts:
    """Write the pairs of a parquet file that may be used, captions cleaned; runs in a worker process, on any machine.

    A file that is damaged is left out, and counted.
    """
    import pyarrow
    import pyarrow.parquet

    counts = Counts()
    schema = pyarrow.schema([("url", pyarrow.string()), ("caption", pyarrow.string())])
    try:
        columns = columns_of(job.source, job.rules.filters)
        with replacing(job.target) as part, pyarrow.parquet.ParquetWriter(part, schema) as writer:
            for rows in _batches(job.source, columns):
                pairs = list(_usable(rows, job.rules, counts))
                counts.made["pairs"] += len(pairs)
                columns_made = [pyarrow.array(list(column), pyarrow.string()) for column in zip(*pairs, strict=True)]
                if pairs:
                    writer.write_batch(pyarrow.record_batch(columns_made, schema=schema))
    except (OSError, DamagedFileError, pyarrow.ArrowException) as error:
        if isinstance(error, OSError) and error.filename:
            raise  # the disk's fault, not the file's
        counts = Counts()
        counts.leave_out(DAMAGED, str(job.source), str(error).splitlines()[0])
    return counts


def _batches(path: Path, columns: Mapping[str, str]) -> Iterator[list[tuple[str, dict[str, Any]]]]:
    """The rows of a file by our names of the columns, each with its place."""
    number = 0
    for batch in _parquet(path).iter_batches(BATCH, columns=list(columns.values())):
        values = [batch.column(batch.schema.names.index(name)).to_pylist() for name in columns.values()]
        rows = [dict(zip(columns, row, strict=True)) for row in zip(*values, strict=True)]
        yield [(f"{path}: row {number + index}", row) for index, row in enumerate(rows)]
        number += len(rows)


def _usable(rows: list[tuple[str, dict[str, Any]]], rules: Rules, counts: Counts) -> Iterator[tuple[str, str]]:
    """Address and cleaned caption of each pair that may be used."""
    counts.read["pairs"] += len(rows)
    for place, row in rows:
        url = row["url"]
        if not isinstance(url, str) or not is_address(url):
            counts.leave_out("no address", place, repr(url)[:60])
        elif rules.allows(row, counts, place) and (text := cleaned_text(row["text"] or "", counts, place)) is not None:
            yield url, text


def take_shard(job: Job) -> Counts:
    """Put a shard of img2dataset in place, by a hard link where every record may be used, else without the others; runs in a
    worker process, on any machine.

    Its JSON members tell addresses, sizes, and further columns of the list that img2dataset was told to keep. A shard that is
    damaged is left out, and counted.
    """
    counts, kept = Counts(), set[str]()  # names alone: the images of a shard would fill the memory of a process
    try:
        for record in _records(job.source, counts):
            if _may_be_used(record, job.rules, counts):
                kept.add(_stem(record, job.source))
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
        ours: next((values[name] for name in names if name in values), None) for ours, names in _IN_SHARDS.items()
    }
    row["url"] = str(row["url"] or "")
    if record.image is None:
        counts.leave_out("missing image", record.location, row["url"][:100])
        return False
    return rules.allows(row, counts, record.location)


def _stem(record: RawRecord, path: Path) -> str:
    return record.location.removeprefix(f"{path}:").partition(".")[0]


LAION = DataSet(
    title="LAION-400M and LAION-2B-en",
    home="laion.ai",
    licence="lists CC BY 4.0; images under their own terms",
    files={
        "laion*/*.parquet": "addresses, texts, sizes, similarities, tags of safety; one or both of the sets",
        "laion*/*.tar": "shards of img2dataset with their *_stats.json, downloaded before; then no lists are needed",
    },
    sizes={},
    products=(),
    required=(),
)
