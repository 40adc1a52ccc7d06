"""Reads the lines of a file in bounded memory, since a damaged file may contain extremely long lines, such as gigabytes of
zeros."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

PIECE_BYTES = 1 << 20


def bounded_lines(file: BinaryIO, longest: int) -> Iterator[tuple[int, str]]:
    """Yields the lines that follow the current position, numbered from 1 and truncated to ``longest`` bytes."""
    number, mid_line = 0, False
    while line := file.readline(PIECE_BYTES if mid_line else longest):
        if not mid_line:
            number += 1
            yield number, line.decode("utf-8", "replace")
        mid_line = not line.endswith(b"\n")
