"""Lines of a file of any size in bounded memory: files of a run may be damaged, such as by a hole of gigabytes of zeros."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

PIECE_BYTES = 1 << 20


def bounded_lines(file: BinaryIO, longest: int, within: bool = False) -> Iterator[tuple[int, str]]:
    """The lines from the present position on with their numbers, from 1; of a longer one, the first ``longest`` bytes.

    ``within``: the position is in the middle of a line, whose rest is skipped.
    """
    number = 0
    while line := file.readline(PIECE_BYTES if within else longest):
        if not within:
            number += 1
            yield number, line.decode("utf-8", "replace")
        within = not line.endswith(b"\n")
