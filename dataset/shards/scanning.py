"""Where the records of one shard begin: what the index of a data set is made of.

A shard is a file of JSON lines, or an uncompressed WebDataset-style tar (``a/000012.jpg`` beside ``a/000012.txt`` and/or
``a/000012.json``), whose members are a record where their names differ only in what follows the first dot.
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
from dataset.shards.finding import TAR_SUFFIX, ShardFile, open_shard
from dataset.shards.remote.shards import RemoteShard
from dataset.shards.tars import BLOCK, group_of, next_member
from utils.errors import UserError

_COMPRESSED_STARTS = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")
_SCAN_BYTES = 1 << 24
_FIRST_LINE = 1 << 20
_START = 1 << 16
"""Bytes by which the form of a file is recognised."""


@dataclass(frozen=True)
class ScannedShard:
    """The records of a shard, by the bytes at which they begin.

    Attributes:
        starts: (n,) int64, the first byte of each record.
        oddities: (m, 2) int64, ascending. Of lines, for each blank one how many records lie before it, and 0. Of a tar, for each
            member that does not stand beside the others of its record, the record's number and the member's first byte.
        whole: False for a tar without its end blocks.
    """

    starts: np.ndarray
    oddities: np.ndarray
    whole: bool = True

    def records(self, size: int) -> Iterator[tuple[tuple[int, int], list[int]]]:
        """For each record of a tar of ``size`` bytes its span, and where the members begin that stand apart from it."""
        for row, (start, end) in enumerate(zip(self.starts.tolist(), [*self.starts[1:].tolist(), size], strict=True)):
            yield (start, end), self.oddities[self.oddities[:, 0] == row, 1].tolist()


def scan_shard(path: ShardFile, key: str, state: tuple[int, int] | None = None) -> ScannedShard:
    """Where the records of a shard begin.

    Args:
        path: the shard.
        key: config key of the shards, for messages.
        state: that it must have before and after; None: any.

    Raises:
        UserError: with the config ``key``: it is compressed, one JSON array, no whole tar, has another state, or cannot be read.
    """
    _check_state(path, key, state)
    scanned = _scan(path, key, state)
    _check_state(path, key, state)
    return scanned


def _check_state(path: ShardFile, key: str, state: tuple[int, int] | None) -> None:
    """Raise a :class:`UserError` where a file has another state. A remote one is compared with each answer."""
    if isinstance(path, RemoteShard) or state is None:
        return
    try:
        status = path.stat()
    except OSError as error:
        raise UserError(f"{key}: {path}: {error.strerror or error}; check the file and its permissions") from None
    if state != (status.st_size, status.st_mtime_ns):
        raise UserError(f"{key}: {path} was changed while it was indexed; start again when it is complete")


def _scan(path: ShardFile, key: str, state: tuple[int, int] | None) -> ScannedShard:
    try:
        with path.open(state) if isinstance(path, RemoteShard) else open_shard(path) as file:
            start = file.read(8)
            if start.startswith(_COMPRESSED_STARTS):
                raise UserError(f"{key}: {path} is compressed and cannot be read at an offset; decompress it first")
            if path.suffix == TAR_SUFFIX:
                return _scan_tar(file, path, key)
            file.seek(0)
            form = foreign_form(file.read(_START).decode("utf-8", "replace"))
            if form is not None and (form != ARRAY or _is_one_array(file)):
                raise UserError(
                    f"{key}: {path} is {form}; a shard has one JSON object on each line; {convert_hint(path)}"
                )
            return _scan_lines(path) if isinstance(path, Path) else _scan_remote_lines(file)
    except OSError as error:
        raise UserError(f"{key}: {path}: {error.strerror or error}; check the file and its permissions") from None


def _is_one_array(file: BinaryIO) -> bool:
    """Whether a file that begins with a list is one, and not lines of which the first is a list: a broken record."""
    file.seek(0)
    line = file.readline(_FIRST_LINE)
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return True
    return not file.readline(_FIRST_LINE).strip()


def _scan_lines(path: Path) -> ScannedShard:
    """The lines that are not blank."""
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
    # Only a line that starts with white space can be blank: look at few lines, not at all.
    suspects = np.flatnonzero(np.isin(data[starts], np.frombuffer(b" \t\r\n", np.uint8)))
    ends = np.append(starts[1:], size)
    blank = [i for i in suspects.tolist() if not data[starts[i] : ends[i]].tobytes().strip()]
    before_blank = np.array(blank, np.int64) - np.arange(len(blank))
    return ScannedShard(np.delete(starts, blank), np.stack([before_blank, np.zeros_like(before_blank)], axis=1))


def _scan_remote_lines(file: BinaryIO) -> ScannedShard:
    """The lines that are not blank, of a file that cannot be mapped."""
    starts: list[int] = []
    before_blank: list[int] = []
    at = start = 0
    blank = True
    file.seek(0)
    while piece := file.readline(_SCAN_BYTES):
        at += len(piece)
        blank = blank and not piece.strip()
        if not piece.endswith(b"\n") and len(piece) == _SCAN_BYTES:
            continue  # a long line comes in pieces
        if blank:
            before_blank.append(len(starts))
        else:
            starts.append(start)
        start, blank = at, True
    if start < at and not blank:  # the last piece was full
        starts.append(start)
    oddities = np.array(before_blank, np.int64)
    return ScannedShard(np.array(starts, np.int64), np.stack([oddities, np.zeros_like(oddities)], axis=1))


def _scan_tar(file: BinaryIO, path: ShardFile, key: str) -> ScannedShard:
    numbers: dict[str, int] = {}
    starts: list[int] = []
    apart: list[tuple[int, int]] = []
    at, last, size = 0, -1, file.seek(0, os.SEEK_END)
    try:
        while (member := next_member(file, at)) is not None:
            at = member.end
            if at > size:
                raise tarfile.ReadError(f"{member.name} ends at byte {at:,}, the file at {size:,}")
            if (group := group_of(member)) is None:
                continue
            number = numbers.setdefault(group, len(starts))
            if number == len(starts):
                starts.append(member.start)
            elif number != last:
                apart.append((number, member.start))
            last = number
        file.seek(at)
        ending = file.read(BLOCK)
    except (tarfile.TarError, ValueError, OverflowError) as error:
        raise UserError(
            f"{key}: {path} is not a whole tar file ({error}, after {len(starts)} records); copy or write it again"
        ) from None
    oddities = np.array(sorted(apart), np.int64).reshape(-1, 2)
    return ScannedShard(np.array(starts, np.int64), oddities, whole=bool(ending))
