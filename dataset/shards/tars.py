"""Tar shards: reads the members of an archive, and the records that they form."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple

from dataset.files import IMAGE_BYTES, RECORD_BYTES, check_bytes
from dataset.records.broken import BrokenRecordError, json_fault
from dataset.records.schema import RawRecord
from dataset.shards.finding import ShardFile
from utils.suffixes import IMAGE_SUFFIXES

BLOCK = 512
"""Size of a header in bytes; contents are padded to a multiple of this size."""

_LIMITS = ((IMAGE_BYTES, "image"), (RECORD_BYTES, "text"), (RECORD_BYTES, "json"))
"""Maximum size in bytes of each of a record's members, and its name in messages."""
_REGULAR = (b"0", b"\0")
_CHECKSUM = slice(148, 156)


class Member(NamedTuple):
    """A member of an archive.

    Attributes:
        name: name of the member.
        start: offset of the member's headers.
        content: offset of the member's content.
        size: size of the content in bytes.
        end: offset of the next member.
        is_file: False for folders and links.
    """

    name: str
    start: int
    content: int
    size: int
    end: int
    is_file: bool


def next_member(file: BinaryIO, at: int) -> Member | None:
    """Returns the member whose headers begin at byte ``at``, or None at the end of the archive or of the file.

    Raises:
        tarfile.TarError, ValueError: if the header is missing or invalid.
    """
    file.seek(at)
    header = file.read(BLOCK)
    if not header.strip(b"\0"):
        return None
    size = _size_of_plain(header)
    if size is not None:
        prefix = header[345:500].split(b"\0", 1)[0] if header[257:263] == b"ustar\0" else b""
        name = b"/".join(filter(None, [prefix, header[:100].split(b"\0", 1)[0]]))
        text = name.decode("utf-8", "surrogateescape")
        return Member(text, at, at + BLOCK, size, at + BLOCK + _padded(size), True)
    return _by_tarfile(file, header, at)


def _size_of_plain(header: bytes) -> int | None:
    """Returns the size of a regular file that is described by a single valid header, or None for other members, such as files
    with a long name. This is ten times faster than tarfile."""
    if len(header) < BLOCK or header[156:157] not in _REGULAR or not header[124:135].isdigit():
        return None
    total = sum(header) - sum(header[_CHECKSUM]) + 8 * ord(" ")
    try:
        return int(header[124:135], 8) if int(header[_CHECKSUM].strip(b" \0"), 8) == total else None
    except ValueError:
        return None


def _by_tarfile(file: BinaryIO, header: bytes, at: int) -> Member:
    tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")  # raises if this is not a header
    file.seek(at)
    # The blocks of a long name precede the member's own header; tarfile reads both when it is opened at this offset.
    with tarfile.open(fileobj=file, mode="r:") as tar:
        member = tar.next()
        if member is None:
            raise tarfile.ReadError(f"no member at byte {at}")
        size = member.size if member.isfile() else 0
        return Member(member.name, at, member.offset_data, size, member.offset_data + _padded(size), member.isfile())


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def group_of(member: Member) -> str | None:
    """Returns the key of the record that a member belongs to: its folder, and its name up to the first dot.

    Returns None for a member that belongs to no record.
    """
    folder, _, name = member.name.rpartition("/")
    stem = name.partition(".")[0]
    return f"{folder}/{stem}" if member.is_file and stem else None


def members_of_record(file: BinaryIO, span: tuple[int, int], detached: Sequence[int]) -> Iterator[Member]:
    """Yields the members of a record.

    Args:
        file: the archive.
        span: offsets of the record and of the next record.
        detached: offsets of the members of the record that are elsewhere in the archive.
    """
    at, end = span
    group = None
    while at < end and (member := next_member(file, at)) is not None:
        at, its_group = member.end, group_of(member)
        group = its_group if group is None else group
        if its_group is not None and its_group == group:
            yield member
    for at in detached:
        if (member := next_member(file, at)) is not None:
            yield member


def read_record(file: BinaryIO, path: ShardFile, span: tuple[int, int], detached: Sequence[int] = ()) -> RawRecord:
    """Reads a record. The arguments are those of :func:`members_of_record`, and the record's location is ``shard.tar:member``.

    Raises:
        BrokenRecordError: "bad json", "wrong type", or "unreadable image" if a member exceeds its limit.
        tarfile.TarError, ValueError: if the header is missing or invalid.
    """
    members = list(members_of_record(file, span, detached))
    location = _location(path, members)
    contents: list[bytes | None] = []
    for member, (limit, kind) in zip(_by_kind(members), _LIMITS, strict=True):
        if member is None:
            contents.append(None)
            continue
        check_bytes(member.size, limit, location, f"the {kind} member", kind)
        file.seek(member.content)
        contents.append(file.read(member.size))
    image, text, values = contents
    try:
        caption = text.decode("utf-8") if text is not None else None
    except UnicodeDecodeError as error:
        raise BrokenRecordError("wrong type", location, f"the text is not UTF-8: {error}") from None
    return RawRecord(
        parse_object(values, location) if values is not None else {}, location, path.parent, image, caption
    )


def location_of(file: BinaryIO, path: ShardFile, span: tuple[int, int], detached: Sequence[int] = ()) -> str:
    """Returns ``shard.tar:member`` with the first member of the record in the order image, text, JSON."""
    return _location(path, list(members_of_record(file, span, detached)))


def parse_object(line: bytes, location: str) -> dict[str, Any]:
    """Parses a JSON object; raises :class:`BrokenRecordError` ("bad json" or "wrong type") for anything else."""
    try:
        values = json.loads(line.decode("utf-8-sig"))  # json's own decoding takes twice as long as the rest
    except (ValueError, RecursionError) as error:
        raise BrokenRecordError("bad json", location, json_fault(error)) from None
    if not isinstance(values, dict):
        raise BrokenRecordError("wrong type", location, "the line is not a JSON object")
    return values


def _by_kind(members: Sequence[Member]) -> list[Member | None]:
    """Returns the first image, the first text and the first JSON member."""
    found: list[Member | None] = [None, None, None]
    for member in members:
        _, dot, rest = member.name.rpartition("/")[2].partition(".")
        suffix = dot + rest.lower()
        kind = 0 if suffix in IMAGE_SUFFIXES else {".txt": 1, ".json": 2}.get(suffix)
        if kind is not None and found[kind] is None:
            found[kind] = member
    return found


def _location(path: ShardFile, members: Sequence[Member]) -> str:
    if not members:
        raise tarfile.ReadError("no member of the record was found")
    first = next((member for member in _by_kind(members) if member is not None), members[0])
    return f"{path}:{first.name}"
