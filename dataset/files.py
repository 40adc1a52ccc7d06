"""Reads the files that records refer to: only regular files, up to a size limit."""

from __future__ import annotations

import os
from pathlib import Path

from dataset.broken import MediaError
from utils.errors import NotRegularError
from utils.files import open_regular
from utils.open_files import limit_error

IMAGE_BYTES = 100_000_000
"""Maximum size of an encoded image, in a file, in base64 or in a tar. The largest photographs of the official data sets take 20
MB."""
RECORD_BYTES = 1_000_000_000
"""Maximum size of a record: a JSON line, a JSON member of a tar, or a JSON list of frames, including base64 images."""


def read_file(path: Path, limit: int, kind: str = "image") -> bytes:
    """Reads a regular file.

    Args:
        path: the file.
        limit: maximum size in bytes.
        kind: medium that the file contains, such as "image"; part of the error's kind.

    Raises:
        MediaError: "missing <kind>" if the file does not exist, "unreadable <kind>" if it is not a regular file or is too
            large.
    """
    try:
        file = open_regular(path)
    except NotRegularError as error:
        raise MediaError(f"unreadable {kind}", f"{path} {error.strerror}") from None
    except (OSError, ValueError) as error:
        if (failure := limit_error(error)) is not None:
            raise failure from None
        reason = getattr(error, "strerror", None) or str(error)
        raise MediaError(f"missing {kind}", f"{str(path)[:200]}: {reason}") from None
    with file:
        size = os.fstat(file.fileno()).st_size
        check_bytes(size, limit, f"{path}", kind)
        return file.read(size)


def check_bytes(size: int, limit: int, what: str, kind: str = "image") -> None:
    """Raises :class:`MediaError` ("unreadable <kind>") if ``what`` has more bytes than ``limit``."""
    if size > limit:
        message = f"{what} has {size:,} bytes, more than the limit of {limit:,} (dataset/files.py)"
        raise MediaError(f"unreadable {kind}", message)
