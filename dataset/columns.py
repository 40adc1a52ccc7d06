"""Columns of texts as a few arrays.

Worker processes share the memory of what was there before they were forked until one of them writes to it, and looking at a
Python object writes: it counts its references. Arrays hold millions of texts without an object for each, so workers share them.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np


class TextColumn:
    """Texts by their row, in one array of bytes."""

    def __init__(self, texts: Iterable[str]):
        encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
        self.ends = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
        self.content = np.frombuffer(b"".join(encoded), np.uint8)

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __getitem__(self, row: int) -> str:
        return self.content[self.ends[row] : self.ends[row + 1]].tobytes().decode("utf-8", "surrogatepass")

    @property
    def nbytes(self) -> int:
        return int(self.ends.nbytes + self.content.nbytes)


class RepeatedTextColumn:
    """Texts by their row, of which each different one is kept once."""

    def __init__(self, texts: Iterable[str]):
        numbers: dict[str, int] = {}
        self.numbers = np.fromiter((numbers.setdefault(text, len(numbers)) for text in texts), np.int32)
        self.texts = TextColumn(numbers)

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, row: int) -> str:
        return self.texts[self.numbers[row]]

    @property
    def nbytes(self) -> int:
        return self.numbers.nbytes + self.texts.nbytes
