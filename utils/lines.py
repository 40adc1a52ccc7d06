"""Reads the lines of a file in bounded memory, since files may be damaged, for example by a hole of gigabytes of zeros."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

PIECE_BYTES = 1 << 20


def bounded_lines(file: BinaryIO, longest: int, within: bool = False) -> Iterator[tuple[int, str]]:
    """Yields the lines from the current position on, numbered from 1 and truncated to ``longest`` bytes.

    ``within``: True if the position is in the middle of a line, the rest of which is then skipped.
    """
    number = 0
    while line := file.readline(PIECE_BYTES if within else longest):
        if not within:
            number += 1
            yield number, line.decode("utf-8", "replace")
        within = not line.endswith(b"\n")
