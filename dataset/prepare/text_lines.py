"""Reads official text files line by line."""

from __future__ import annotations

import codecs
import itertools
from collections.abc import Iterator

from dataset.prepare.raw_folder import RawFile
from utils.errors import UserError

MAX_LINE_BYTES = 1 << 20
"""Maximum size in bytes of a line in a text file."""


def lines_of(file: RawFile, max_bytes: int = MAX_LINE_BYTES) -> Iterator[tuple[str, str]]:
    """Yields the lines of a text file without line breaks, each with its location.

    Args:
        file: the file.
        max_bytes: maximum size of a line in bytes; a longer line suggests the wrong file.

    Raises:
        UserError: the file is not UTF-8, or a line is too long.
    """
    decode = codecs.getdecoder("utf-8")
    with file.open() as stream:
        for number in itertools.count(1):
            line = stream.readline(max_bytes)
            if not line:
                return
            location = f"{file}:{number}"
            if len(line) == max_bytes:
                raise UserError(
                    f"a line of more than {max_bytes:,} bytes", where=location, remedy="is it the official file?"
                )
            try:
                yield location, decode(line)[0].removeprefix("\ufeff").rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise UserError(
                    f"not UTF-8: {error.reason}", where=location, remedy="is it the official file?"
                ) from None
