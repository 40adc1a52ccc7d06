"""Scans a shard for the offsets of its records, from which the index of a data set is built.

A shard is a file of JSON lines, an uncompressed WebDataset-style tar (``a/000012.jpg`` with ``a/000012.txt`` and/or
``a/000012.json``), or a Parquet file. Members of a tar belong to the same record if their names are equal up to the first dot.
"""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from dataset.records.forms import ARRAY, convert_hint, foreign_form
from dataset.shards.finding import PARQUET_SUFFIX, TAR_SUFFIX, ShardFile, open_shard
from dataset.shards.parquet import scan_row_groups
from dataset.shards.remote.shards import RemoteShard
from dataset.shards.tars import BLOCK, detached_members, group_of, next_member
from utils.errors import UserError

_COMPRESSED_STARTS = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")
_SCAN_BYTES = 1 << 24
_MAX_FIRST_LINE_BYTES = 1 << 20
_FORMAT_BYTES = 1 << 16
"""Number of bytes at the beginning of a file that are read to recognise its format."""


@dataclass(frozen=True)
class ScannedShard:
    """The offsets of the records of a shard.

    Attributes:
        starts: (n,) int64, offset of the first byte of each record; in Parquet files, the index of each row's row group.
        irregularities: (m, 2) int64. JSON lines have one row for each blank line, which contains the number of records before it,
            and 0. Tars have one row for each member that does not directly follow the first members of its record, which contains
            the index of the record and the offset of the member. Parquet files have two rows for each row group: the first half
            of the array contains the first row and the decompressed size of each row group, and the second half contains the
            offsets of its start and end in the file.
        complete: False for a tar without its end blocks.
        links: number of links in a tar. They have no content and belong to no record.
    """

    starts: np.ndarray
    irregularities: np.ndarray
    complete: bool = True
    links: int = 0

    def records(self, size: int) -> Iterator[tuple[tuple[int, int], list[int]]]:
        """Yields, for each record of a tar with ``size`` bytes, its span and the offsets of its detached members."""
        for row, (start, end) in enumerate(zip(self.starts.tolist(), [*self.starts[1:].tolist(), size], strict=True)):
            yield (start, end), detached_members(self.irregularities, row)


def scan_shard(path: ShardFile, key: str, state: tuple[int, int] | None = None) -> ScannedShard:
    """Returns the offsets of the records of a shard.

    Args:
        path: the shard.
        key: config key of the shards, to name in error messages.
        state: state that the shard must have before and after the scan; if None, the state is not checked.

    Raises:
        UserError: if the shard is compressed, is a JSON array, is a truncated tar, has a different state, or cannot be read. The
            message names the config ``key``.
    """
    _check_state(path, key, state)
    scanned = _scan(path, key, state)
    _check_state(path, key, state)
    return scanned


def _check_state(path: ShardFile, key: str, state: tuple[int, int] | None) -> None:
    """Raises :class:`UserError` if a file has a different state. The state of a remote file is checked with each response."""
    if isinstance(path, RemoteShard) or state is None:
        return
    try:
        status = path.stat()
    except OSError as error:
        raise UserError(
            f"{path}: {error.strerror or error}", where=key, remedy="check the file and its permissions"
        ) from None
    if state != (status.st_size, status.st_mtime_ns):
        raise UserError(f"{path} was changed while it was indexed", where=key, remedy="start again when it is complete")


def _scan(path: ShardFile, key: str, state: tuple[int, int] | None) -> ScannedShard:
    try:
        with path.open(state) if isinstance(path, RemoteShard) else open_shard(path) as file:
            if path.suffix == PARQUET_SUFFIX:
                rows, groups = scan_row_groups(file, path, key)
                return ScannedShard(np.repeat(np.arange(len(rows)), rows), np.concatenate(np.split(groups, 2, axis=1)))
            start = file.read(8)
            if start.startswith(_COMPRESSED_STARTS):
                raise UserError(
                    f"{path} is compressed and cannot be read at an offset", where=key, remedy="decompress it first"
                )
            if path.suffix == TAR_SUFFIX:
                return _scan_tar(file, path, key)
            file.seek(0)
            form = foreign_form(file.read(_FORMAT_BYTES).decode("utf-8", "replace"))
            if form is not None and (form != ARRAY or _is_one_array(file)):
                raise UserError(
                    f"{path} is {form}; a shard has one JSON object on each line", where=key, remedy=convert_hint(path)
                )
            return _scan_lines(path) if isinstance(path, Path) else _scan_remote_lines(file)
    except OSError as error:
        raise UserError(
            f"{path}: {error.strerror or error}", where=key, remedy="check the file and its permissions"
        ) from None


def _is_one_array(file: BinaryIO) -> bool:
    """Returns True if a file that begins with "[" is a JSON array. Otherwise it consists of JSON lines, and its first line is a
    list, which counts as a broken record."""
    file.seek(0)
    line = file.readline(_MAX_FIRST_LINE_BYTES)
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return True
    return not file.readline(_MAX_FIRST_LINE_BYTES).strip()


def _scan_lines(path: Path) -> ScannedShard:
    """Scans a local file of JSON lines; blank lines are not records."""
    size = path.stat().st_size
    if size == 0:
        return ScannedShard(np.empty(0, np.int64), np.empty((0, 2), np.int64))
    data = np.memmap(path, np.uint8, mode="r")
    parts = [np.zeros(1, np.int64)]
    for begin in range(0, size, _SCAN_BYTES):
        parts.append(np.flatnonzero(data[begin : begin + _SCAN_BYTES] == ord("\n")) + (begin + 1))
    starts = np.concatenate(parts)
    if starts[-1] == size:
        starts = starts[:-1]
    # Only lines that start with white space can be blank, so only those few lines are checked.
    suspects = np.flatnonzero(np.isin(data[starts], np.frombuffer(b" \t\r\n", np.uint8)))
    ends = np.append(starts[1:], size)
    blank = [i for i in suspects.tolist() if not data[starts[i] : ends[i]].tobytes().strip()]
    before_blank = np.array(blank, np.int64) - np.arange(len(blank))
    return ScannedShard(np.delete(starts, blank), np.stack([before_blank, np.zeros_like(before_blank)], axis=1))


def _scan_remote_lines(file: BinaryIO) -> ScannedShard:
    """Scans JSON lines like :func:`_scan_lines`, for a remote file, which cannot be memory-mapped."""
    starts: list[int] = []
    before_blank: list[int] = []
    at = start = 0
    blank = True
    file.seek(0)
    while piece := file.readline(_SCAN_BYTES):
        at += len(piece)
        blank = blank and not piece.strip()
        if not piece.endswith(b"\n") and len(piece) == _SCAN_BYTES:
            continue  # a long line is read in pieces
        if blank:
            before_blank.append(len(starts))
        else:
            starts.append(start)
        start, blank = at, True
    if start < at and not blank:  # the last piece was full
        starts.append(start)
    irregularities = np.array(before_blank, np.int64)
    return ScannedShard(np.array(starts, np.int64), np.stack([irregularities, np.zeros_like(irregularities)], axis=1))


def _scan_tar(file: BinaryIO, path: ShardFile, key: str) -> ScannedShard:
    numbers: dict[str, int] = {}
    starts: list[int] = []
    detached: list[tuple[int, int]] = []
    at, size, links = 0, file.seek(0, os.SEEK_END), 0
    current = -1  # the record that was started last, until a member of another record follows
    try:
        while (member := next_member(file, at)) is not None:
            at = member.end
            if at > size:
                raise tarfile.ReadError(f"{member.name} ends at byte {at:,}, the file at {size:,}")
            links += member.is_link
            if (group := group_of(member)) is None:
                continue
            number = numbers.setdefault(group, len(starts))
            if number == len(starts):
                starts.append(member.start)
                current = number
            elif number != current:
                detached.append((number, member.start))
                current = -1
        file.seek(at)
        ending = file.read(BLOCK)
    except (tarfile.TarError, ValueError, OverflowError) as error:
        raise UserError(
            f"{path} is not a complete tar file ({error}, after {len(starts)} records)",
            where=key,
            remedy="copy or write it again",
        ) from None
    irregularities = np.array(sorted(detached), np.int64).reshape(-1, 2)
    return ScannedShard(np.array(starts, np.int64), irregularities, bool(ending), links)
