"""``run.py prepare parquet``: rewrites shards as Parquet files with small row groups and the images inside."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from batches.base import BrokenRecord
from dataset.broken import broken_record
from dataset.prepare.file_jobs import FileJob, FinishedFile, fill_with_files
from dataset.prepare.folders import tally
from dataset.prepare.output_flags import OutputFlags, manifest_of
from dataset.prepare.output_folder import OutputFolder
from dataset.prepare.processes import WorkerDiedError, in_order
from dataset.records.schema import ImageKeys, RawRecord, image_source, parse_region_record
from dataset.shards.parquet import JSON_COLUMN, check_pyarrow
from dataset.shards.readers import Shards
from utils import log
from utils.cores import usable_cores
from utils.errors import UserError
from utils.files import replacing
from utils.flags import SEVERAL, read_by, whole_number

GROUP_BYTES = 16_000_000
"""Maximum size of a row group, except for a row group of a single row."""
_FILE_BYTES, _FILE_RECORDS = 256_000_000, 10_000
"""Approximate maximum size, and maximum number of records, of the part of a shard that becomes one file. The texts of all of
these records are in memory at the same time, but the images of only one row group."""
_MAX_PRINTED = 3
"""Number of broken records that are printed. The file :data:`BROKEN` lists all of them."""
MANIFEST, BROKEN = manifest_of("parquet"), "_parquet/broken.jsonl"


@dataclass(frozen=True)
class _Job(FileJob):
    """A file to build from the records ``first`` … ``last`` - 1, which are in shard number ``shard``."""

    shards: Shards
    shard: int
    first: int
    last: int
    keys: ImageKeys

    @property
    def source_bytes(self) -> int:
        """Size of the shard in bytes when it was indexed."""
        return self.shards.index.state(self.shard)[0]

    @property
    def size(self) -> int:
        """Number of records."""
        return self.last - self.first


def _write_file(job: _Job) -> FinishedFile:
    """Writes a file; runs in a worker process. No file is written if all of its records are broken."""
    import pyarrow
    import pyarrow.parquet

    broken: list[BrokenRecord] = []
    numbers, values = [], []
    for number in range(job.first, job.last):
        try:
            raw = job.shards.read(number)
            _check(raw, job.keys)
            values.append(_values(raw, job.keys.image_key))
            numbers.append(number)
        except Exception as error:
            broken.append(broken_record(error, job.shards.exact_location(number)))
    names = list(dict.fromkeys(name for each in values for name in each))
    columns, fields = {}, [pyarrow.field(job.keys.image_key, pyarrow.binary())]
    for name in names:
        columns[name], metadata = _column([each.get(name) for each in values], name, job)
        fields.append(pyarrow.field(name, columns[name].type, metadata=metadata))
    schema = pyarrow.schema(fields)
    sizes = [len(json.dumps(each, default=str)) for each in values]
    rows = groups = without_image = 0
    options = {"use_dictionary": names, "write_page_checksum": True}  # a dictionary would store all images twice
    with replacing(job.target) as part, pyarrow.parquet.ParquetWriter(part, schema, **options) as writer:
        for kept, images in _groups(job, numbers, sizes, broken):
            own = [pyarrow.array(images, pyarrow.binary()), *(column.take(kept) for column in columns.values())]
            writer.write_table(pyarrow.table(own, schema=schema), row_group_size=len(kept))
            rows, groups, without_image = rows + len(kept), groups + 1, without_image + images.count(None)
    if not rows:
        job.target.unlink()
    return FinishedFile({"records": rows, "row groups": groups, "without image": without_image}, broken)


def _groups(
    job: _Job, numbers: Sequence[int], sizes: Sequence[int], broken: list[BrokenRecord]
) -> Iterator[tuple[list[int], list[bytes | None]]]:
    """Yields the rows of each row group, as indices into ``numbers``, and their images. Records whose image cannot be loaded are
    added to ``broken``.

    Args:
        job: the job.
        numbers: indices of the readable records.
        sizes: size of each record in bytes, without the image.
        broken: the skipped records.
    """
    kept: list[int] = []
    images: list[bytes | None] = []
    total = 0
    for index, number in enumerate(numbers):
        try:
            raw = job.shards.read(number)
            has_image = raw.image is not None or raw.values.get(job.keys.image_key) is not None
            content = image_source(raw, job.keys).load() if has_image else None
        except Exception as error:
            broken.append(broken_record(error, job.shards.exact_location(number)))
            continue
        size = sizes[index] + len(content or b"")
        if kept and total + size > GROUP_BYTES:
            yield kept, images
            kept, images, total = [], [], 0
        kept.append(index)
        images.append(content)
        total += size
    if kept:
        yield kept, images


def _values(raw: RawRecord, image_key: str) -> dict[str, Any]:
    """Returns the values of a record without the image. The text member of a tar becomes the caption."""
    text = {"caption": raw.text} if raw.text is not None else {}
    return {name: value for name, value in {**text, **raw.values}.items() if name != image_key}


def _check(raw: RawRecord, keys: ImageKeys) -> None:
    """Checks the texts and the elements of a record, if it has any, with the parser of the training streams.

    The image is checked when it is loaded. A record may lack a caption and an image, because training may read them under other
    keys.

    Raises:
        BrokenRecordError: if the parser rejects the record or a part of it.
    """
    values = {"elems": [], **{name: value for name, value in raw.values.items() if value is not None}}
    record = parse_region_record(replace(raw, values=values, image=raw.image or b""), keys, "caption")
    if record.broken:
        raise record.broken[0]


def _column(values: list[Any], name: str, job: _Job) -> tuple[Any, dict[bytes, bytes] | None]:
    """Converts the values of a key to an Arrow array.

    Values that have no common Arrow type, such as texts and dictionaries of texts by language, become JSON texts.

    Returns:
        The array, and the metadata of its field, which makes the reader parse JSON texts.

    Raises:
        UserError: if the values have no common type and cannot be written as JSON, such as dates and texts.
    """
    import pyarrow

    try:
        return pyarrow.array(_uniform(_with_lists_of_boxes(values) if name == "elems" else values)), None
    except (pyarrow.ArrowException, ValueError, TypeError, OverflowError) as error:
        reason = str(error).splitlines()[0][:150]
    try:
        return pyarrow.array([None if each is None else json.dumps(each) for each in values]), JSON_COLUMN
    except (ValueError, TypeError):
        raise UserError(
            f"{job.shards.location(job.first)} and the records after it: the values of {name!r} do not have one "
            f"type ({reason})",
            remedy="use one type, or remove the key",
        ) from None


def _with_lists_of_boxes(values: list[Any]) -> list[Any]:
    """Converts every ``bb`` to a list of boxes if any of them is a list of boxes, because a column has a single type."""
    elems = [each for value in values if isinstance(value, list) for each in value if isinstance(each, dict)]
    boxes = [each["bb"] for each in elems if isinstance(each.get("bb"), list) and each["bb"]]
    if not any(isinstance(box[0], list) for box in boxes):
        return values

    def changed(elem: Any) -> Any:
        box = elem.get("bb") if isinstance(elem, dict) else None
        return {**elem, "bb": [box]} if isinstance(box, list) and box and not isinstance(box[0], list) else elem

    return [[changed(elem) for elem in value] if isinstance(value, list) else value for value in values]


def _uniform(values: list[Any]) -> list[Any]:
    """Converts the values of a column to one type, on every level. If some are lists, the others become lists of one item.
    Objects get the keys of all objects, with null for missing values. An object without keys becomes null."""
    present = [value for value in values if value is not None]
    if any(isinstance(value, list) for value in present):
        lists = [value if value is None or isinstance(value, list) else [value] for value in values]
        items = iter(_uniform([item for value in lists if value is not None for item in value]))
        return [None if value is None else [next(items) for _ in value] for value in lists]
    if present and all(isinstance(value, dict) for value in present):
        names = list(dict.fromkeys(name for value in present for name in value))
        if not names:
            return [None] * len(values)
        columns = [_uniform([None if value is None else value.get(name) for value in values]) for name in names]
        rows = zip(*columns, strict=True)
        return [
            None if value is None else dict(zip(names, row, strict=True))
            for value, row in zip(values, rows, strict=True)
        ]
    return values


def _died(job: _Job) -> FinishedFile:
    raise WorkerDiedError(job.target)


def _jobs(shards: Shards, out: Path, keys: ImageKeys) -> list[_Job]:
    """Returns the files to build. A large shard becomes several files."""
    jobs: list[_Job] = []
    begin = 0
    for shard, (path, records) in enumerate(zip(shards.paths, shards.sizes, strict=True)):
        size = shards.index.state(shard)[0]
        parts = min(records, max(-(-size // _FILE_BYTES), -(-records // _FILE_RECORDS)))
        for part in range(parts):
            first, last = begin + records * part // parts, begin + records * (part + 1) // parts
            jobs.append(_Job(path, out / f"{len(jobs):06d}.parquet", shards, shard, first, last, keys))
        begin += records
    return jobs


def parquet(
    shards: Annotated[tuple[str, ...], SEVERAL],
    /,
    *,
    output: OutputFlags,
    image_key: str = "image",
    image_root: Path | None = None,
    workers: Annotated[int, read_by(whole_number(1, 1024))] = usable_cores(),
) -> int:
    """Rewrite shards as Parquet files with small row groups and the images inside.

    SHARDS are JSON lines, tars or Parquet files: files, patterns, folders, URLs, or hf:ORG/NAME. Every record becomes a row:
    its image is in the binary column --image-key, and its other keys are columns. Text members of tars become the column caption.
    A row group has at most 16 MB, so the files can be read with order: random. If some values of a key are lists, all become
    lists. Values of a key that have no common type, such as texts and dictionaries by language, become JSON texts, which are
    parsed when the files are read.

    A record that cannot be read, whose image is missing, or whose caption, long_caption, hard_negatives or elems are
    malformed is skipped, counted, and listed in _parquet/broken.jsonl in --out.
    Rerun the same command to resume an interrupted run; finished files are kept.

    Args:
        shards: shards, patterns, folders or URLs.
        image_key: key of the image in a JSON record or Parquet row, and name of the column of images.
        image_root: folder that relative image paths start from (default: the folder of the shard).
        workers: number of processes (default: number of cores).

    Examples:
        python run.py prepare parquet data/train-00000.parquet --out data/small
        python run.py prepare parquet data/pairs.jsonl --image-root photos --out data/pairs_parquet

    Returns:
        0: all records were written; 1: some were broken; 2: nothing was written
    """
    log.set_up()
    check_pyarrow("prepare parquet")
    out, started = output.out, time.monotonic()
    source = Shards(shards, key="SHARDS", workers=workers, in_order=True)
    if any(isinstance(path, Path) and path.parent.resolve() == out.resolve() for path in source.paths):
        raise UserError(f"--out {out} is the folder of the shards", remedy="use another")
    keys = ImageKeys(image_key, image_root=image_root)
    jobs = _jobs(source, out, keys)
    arguments = {
        "shards": [str(path) for path in source.paths],
        "image_key": image_key,
        "image_root": None if image_root is None else str(image_root.resolve()),
        "group_bytes": GROUP_BYTES,
    }

    def run(left: Sequence[_Job], advance: object) -> Generator[FinishedFile, None, None]:
        return in_order(_write_file, left, workers, _died)

    names = [job.target.name for job in jobs]
    with OutputFolder(out, MANIFEST, arguments, names, overwrite=output.overwrite) as folder:
        before = dict(folder.entries)
        entries = fill_with_files(folder, jobs, run, desc="parquet", unit="record")
        if folder.complete and folder.entries == before:
            sys.stdout.write(f"{out} is already complete with these arguments; nothing to do\n")
            return 0
        folder.write_broken(BROKEN)
        skipped = [each for entry in entries for each in entry.broken]
        rows = sum(entry.counts["records"] for entry in entries)
        if not rows:
            raise UserError(
                "no record could be written", where=out, remedy=f"first {skipped[0]['place']}: {skipped[0]['detail']}"
            )
        folder.close()
    groups, size = (sum(values) for values in zip(*((e.counts["row groups"], e.bytes) for e in entries), strict=True))
    seconds = time.monotonic() - started
    sys.stdout.write(
        f"{out}: {rows:,} records in {sum(e.bytes > 0 for e in entries):,} files and {groups:,} row groups, {size / 1e9:.3f} GB; "
        f"{seconds:.1f} s\n"
    )
    if without_image := sum(entry.counts.get("without image", 0) for entry in entries):
        sys.stdout.write(f"  {without_image:,} of {rows:,} records have no image (--image-key {image_key})\n")
    if skipped:
        kinds = Counter(each["reason"] for each in skipped)
        sys.stdout.write(f"{out / BROKEN}: {len(skipped):,} broken: {tally(kinds)}\n")
        for each in skipped[:_MAX_PRINTED]:
            sys.stdout.write(f"  {each['place']}: {each['reason']}: {each['detail']}\n")
    return 1 if skipped else 0
