"""Tar shards: where the members of each record lie, and one record at its offsets."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from dataset.files import IMAGE_BYTES, RECORD_BYTES, check_bytes
from dataset.records.broken import BrokenRecordError, json_fault
from dataset.records.schema import RawRecord
from utils.errors import UserError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
_BLOCK = 512
_LIMITS = ((IMAGE_BYTES, "image"), (RECORD_BYTES, "text"), (RECORD_BYTES, "json"))
"""The most bytes of each member of a record, and the word for it."""


def scan_tar(path: Path, key: str) -> tuple[np.ndarray, bool]:
    """Header offsets (n, 4) of image, text, JSON and first member of each group, the members whose names differ only in what
    follows the first dot; and whether the archive ends with its end blocks.

    Raises:
        UserError: with the config ``key``, for a file that is cut off inside a member, or no tar.
    """
    groups: dict[str, list[int]] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # else the archive keeps every member in memory
                folder, _, name = member.name.rpartition("/")
                stem, dot, suffix = name.partition(".")
                if not member.isfile() or not stem:
                    continue
                group = groups.setdefault(f"{folder}/{stem}", [-1, -1, -1, member.offset])
                kind = _member_kind(dot + suffix.lower())
                if kind is not None and group[kind] < 0:
                    group[kind] = member.offset
            end = tar.offset
        with path.open("rb") as file:
            # tarfile takes a broken header for the end of the archive, in silence.
            file.seek(end)
            last = file.read(_BLOCK)
            if last.strip(b"\0"):
                raise tarfile.ReadError(f"no valid header at byte {end}")
    except (tarfile.TarError, ValueError, OverflowError) as error:
        raise UserError(
            f"{key}: {path} is not a whole tar file ({error}, after {len(groups)} records); copy or write it again"
        ) from None
    return np.array(list(groups.values()), np.int64).reshape(-1, 4), bool(last)


def read_group(file: BinaryIO, path: Path, offsets: Sequence[int]) -> RawRecord:
    """The record whose members have their headers at ``offsets``; its place is ``shard.tar:member``.

    Raises:
        BrokenRecordError: "bad json", "wrong type", or "unreadable image" for a member over its limit.
        tarfile.TarError: there is no header.
    """
    place = ""
    contents: list[bytes | None] = []
    for offset, (limit, kind) in zip(offsets[:3], _LIMITS, strict=True):
        if offset < 0:
            contents.append(None)
            continue
        member = _member(file, offset)
        place = place or f"{path}:{member.name}"
        check_bytes(member.size, limit, place, f"the {kind} member", kind)
        contents.append(file.read(member.size))
    image, text, values = contents
    place = place or place_of(file, path, offsets)
    try:
        caption = text.decode("utf-8") if text is not None else None
    except UnicodeDecodeError as error:
        raise BrokenRecordError("wrong type", place, f"the text is not UTF-8: {error}") from None
    return RawRecord(parse_object(values, place) if values is not None else {}, place, path.parent, image, caption)


def place_of(file: BinaryIO, path: Path, offsets: Sequence[int]) -> str:
    """``shard.tar:member``, the first of the record's members in the order image, text, JSON."""
    offset = next(offset for offset in (*offsets[:3], offsets[3]) if offset >= 0)
    return f"{path}:{_member(file, offset).name}"


def parse_object(line: bytes, place: str) -> dict[str, Any]:
    """Raises :class:`BrokenRecordError` ("bad json" or "wrong type") for what is no JSON object."""
    try:
        values = json.loads(line.decode("utf-8-sig"))  # json's own decoding of bytes takes twice the time of the rest
    except (ValueError, RecursionError) as error:
        raise BrokenRecordError("bad json", place, json_fault(error)) from None
    if not isinstance(values, dict):
        raise BrokenRecordError("wrong type", place, "the line is not a JSON object")
    return values


def _member_kind(suffix: str) -> int | None:
    if suffix in IMAGE_SUFFIXES:
        return 0
    return {".txt": 1, ".json": 2}.get(suffix)


def _member(file: BinaryIO, offset: int) -> tarfile.TarInfo:
    """The member whose header is at ``offset``; ``file`` is then at its content, if the name is not a long one."""
    file.seek(offset)
    member = tarfile.TarInfo.frombuf(file.read(_BLOCK), "utf-8", "surrogateescape")
    if member.isreg():
        return member
    # The blocks of a long name stand before the member's own header: a tar opened in the middle reads both.
    file.seek(offset)
    with tarfile.open(fileobj=file, mode="r:") as tar:
        long_named = tar.next()
        if long_named is None or not long_named.isfile():
            raise tarfile.ReadError(f"no member at byte {offset}")
        file.seek(long_named.offset_data)
        return long_named
