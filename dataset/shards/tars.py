"""Tar shards: reads the members of an archive, and the records that they form."""

from __future__ import annotations

import itertools
import tarfile
from collections.abc import Iterator, Sequence
from typing import BinaryIO, NamedTuple

import numpy as np

from dataset.broken import BrokenRecordError
from dataset.files import IMAGE_BYTES, RECORD_BYTES, check_bytes
from dataset.records.schema import RawRecord, parse_object
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
        is_link: True for symbolic and hard links, which have no content.
    """

    name: str
    start: int
    content: int
    size: int
    end: int
    is_file: bool
    is_link: bool = False


def next_member(file: BinaryIO, at: int) -> Member | None:
    """Returns the member whose headers begin at byte ``at``, or None at the end of the archive or of the file.

    Raises:
        tarfile.TarError: if the header is missing or invalid.
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
    try:
        return _by_tarfile(file, header, at)
    except (ValueError, OverflowError) as error:
        raise tarfile.ReadError(str(error)) from None


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
        is_link = member.issym() or member.islnk()
        end = member.offset_data + _padded(size)
        return Member(member.name, at, member.offset_data, size, end, member.isfile(), is_link)


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def group_of(member: Member) -> str | None:
    """Returns the key of the record that a member belongs to (:func:`key_of`), or None if it belongs to no record."""
    key = key_of(member.name)
    return key if member.is_file and key.rpartition("/")[2] else None


def key_of(name: str) -> str:
    """Returns the key that the members of a record share: the folder, and the name up to the first dot."""
    folder, slash, name = name.rpartition("/")
    return folder + slash + name.partition(".")[0]


def detached_members(irregularities: np.ndarray, row: int) -> list[int]:
    """Returns the offsets of the members of a record that do not directly follow the record's first members.

    Args:
        irregularities: (m, 2) int64, sorted, as in :class:`~dataset.shards.scanning.ScannedShard`.
        row: index of the record in the tar.
    """
    first, end = np.searchsorted(irregularities[:, 0], [row, row + 1])
    return irregularities[first:end, 1].tolist()


def members_of_record(file: BinaryIO, span: tuple[int, int], detached: Sequence[int]) -> Iterator[Member]:
    """Yields the members of a record.

    Args:
        file: the archive.
        span: offsets of the record and of the next record.
        detached: offsets of the members of the record that do not directly follow its first member.
    """
    at, end = span
    group = None
    while at < end and (member := next_member(file, at)) is not None:
        at, its_group = member.end, group_of(member)
        if its_group is None:
            continue
        group = its_group if group is None else group
        if its_group != group:
            break
        yield member
    for at in detached:
        if (member := next_member(file, at)) is not None:
            yield member


def read_record(file: BinaryIO, path: ShardFile, span: tuple[int, int], detached: Sequence[int] = ()) -> RawRecord:
    """Reads a record. The arguments are those of :func:`members_of_record`, and the record's location is ``shard.tar:member``.

    Raises:
        BrokenRecordError: "bad json", "wrong type", "repeated member" if the record has two members of a kind, or "unreadable
            image", "unreadable text" or "unreadable json" if a member exceeds its limit.
        tarfile.TarError: if the header is missing or invalid.
    """
    members = list(members_of_record(file, span, detached))
    location = _location(path, members)
    contents: list[bytes | None] = []
    for found, (limit, kind) in zip(_by_kind(members), _LIMITS, strict=True):
        if not found:
            contents.append(None)
            continue
        member, *others = found
        if others:
            twice = f"{member.name} at byte {member.start:,} and {others[0].name} at byte {others[0].start:,}"
            message = f"the record has several {kind} members, {twice}; rename the members of one of the records"
            raise BrokenRecordError("repeated member", message)
        check_bytes(member.size, limit, f"the {kind} member", kind)
        file.seek(member.content)
        contents.append(file.read(member.size))
    image, text, values = contents
    try:
        caption = text.decode("utf-8") if text is not None else None
    except UnicodeDecodeError as error:
        raise BrokenRecordError("wrong type", f"the text is not UTF-8: {error}") from None
    return RawRecord(parse_object(values) if values is not None else {}, location, path.parent, image, caption)


def location_of(file: BinaryIO, path: ShardFile, span: tuple[int, int], detached: Sequence[int] = ()) -> str:
    """Returns ``shard.tar:member`` with the first member of the record in the order image, text, JSON."""
    return _location(path, list(members_of_record(file, span, detached)))


def _by_kind(members: Sequence[Member]) -> tuple[list[Member], list[Member], list[Member]]:
    """Returns the images, the texts and the JSON members."""
    found: tuple[list[Member], list[Member], list[Member]] = [], [], []
    for member in members:
        _, dot, rest = member.name.rpartition("/")[2].partition(".")
        suffix = dot + rest.lower()
        kind = 0 if suffix in IMAGE_SUFFIXES else {".txt": 1, ".json": 2}.get(suffix)
        if kind is not None:
            found[kind].append(member)
    return found


def _location(path: ShardFile, members: Sequence[Member]) -> str:
    if not members:
        raise tarfile.ReadError("no member of the record was found")
    first = next(itertools.chain(*_by_kind(members), members))
    return f"{path}:{first.name}"
