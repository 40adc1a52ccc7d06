"""Bounded reading of files that records name: regular files only, up to a size limit."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from dataset.records.broken import BrokenRecordError
from utils.open_files import too_many

IMAGE_BYTES = 100_000_000
"""Largest encoded image, in a file, in base64 or in a tar. The largest photographs of the official sets have 20 MB."""
RECORD_BYTES = 1_000_000_000
"""Largest record: a JSON line, a JSON member of a tar or a JSON list of frames, with all the base64 in it."""


def read_file(path: Path, limit: int, place: str, kind: str = "image") -> bytes:
    """The content of a regular file.

    The file is opened without waiting and checked before any byte is read: a FIFO would block, a device has no end.

    Args:
        path: the file.
        limit: the most bytes that are read.
        place: where the record lies, for messages.
        kind: the medium in the kind of the error.

    Raises:
        BrokenRecordError: "missing <kind>" if there is no such file, "unreadable <kind>" if it is no regular file or too large.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (OSError, ValueError) as error:
        if (told := too_many(error)) is not None:
            raise told from None
        reason = getattr(error, "strerror", None) or str(error)
        raise BrokenRecordError(f"missing {kind}", place, f"{str(path)[:200]}: {reason}") from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise BrokenRecordError(
                f"unreadable {kind}", place, f"{path} is {_what(status.st_mode)}, not a regular file"
            )
        check_bytes(status.st_size, limit, place, f"{path}", kind)
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return file.read(status.st_size)
    finally:
        os.close(descriptor)


def check_bytes(size: int, limit: int, place: str, what: str, kind: str = "image") -> None:
    """Raises :class:`BrokenRecordError` ("unreadable <kind>") where ``what`` has more bytes than ``limit``."""
    if size > limit:
        message = f"{what} has {size:,} bytes, more than the limit of {limit:,} (dataset/files.py)"
        raise BrokenRecordError(f"unreadable {kind}", place, message)


def _what(mode: int) -> str:
    kinds = {stat.S_ISDIR: "a folder", stat.S_ISFIFO: "a FIFO", stat.S_ISCHR: "a device", stat.S_ISSOCK: "a socket"}
    return next((name for is_kind, name in kinds.items() if is_kind(mode)), "a special file")
