"""Bounded reading of files that records name: regular files only, up to a size limit."""

from __future__ import annotations

import os
from pathlib import Path

from dataset.records.broken import BrokenRecordError
from utils.errors import NotRegularError
from utils.files import open_regular
from utils.open_files import too_many

IMAGE_BYTES = 100_000_000
"""Largest encoded image, in a file, in base64 or in a tar. The largest photographs of the official sets have 20 MB."""
RECORD_BYTES = 1_000_000_000
"""Largest record: a JSON line, a JSON member of a tar or a JSON list of frames, with all the base64 in it."""


def read_file(path: Path, limit: int, location: str, kind: str = "image") -> bytes:
    """The content of a regular file.

    Args:
        path: the file.
        limit: the most bytes that are read.
        location: where the record lies, for messages.
        kind: the medium in the kind of the error.

    Raises:
        BrokenRecordError: "missing <kind>" if there is no such file, "unreadable <kind>" if it is no regular file or too large.
    """
    try:
        file = open_regular(path)
    except NotRegularError as error:
        raise BrokenRecordError(f"unreadable {kind}", location, f"{path} {error.strerror}") from None
    except (OSError, ValueError) as error:
        if (told := too_many(error)) is not None:
            raise told from None
        reason = getattr(error, "strerror", None) or str(error)
        raise BrokenRecordError(f"missing {kind}", location, f"{str(path)[:200]}: {reason}") from None
    with file:
        size = os.fstat(file.fileno()).st_size
        check_bytes(size, limit, location, f"{path}", kind)
        return file.read(size)


def check_bytes(size: int, limit: int, location: str, what: str, kind: str = "image") -> None:
    """Raises :class:`BrokenRecordError` ("unreadable <kind>") where ``what`` has more bytes than ``limit``."""
    if size > limit:
        message = f"{what} has {size:,} bytes, more than the limit of {limit:,} (dataset/files.py)"
        raise BrokenRecordError(f"unreadable {kind}", location, message)
