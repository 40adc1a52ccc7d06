"""Columns of texts in a few arrays.

Forked worker processes share memory with the training process until one of them writes to it. Even reading a Python object writes
to it, because of its reference count. Arrays store millions of texts without an object for each text, so workers can share them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import overload

import numpy as np


class TextColumn(Sequence[str]):
    """A column of texts, in one array of bytes."""

    def __init__(self, texts: Iterable[str]):
        encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
        self.ends = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
        self.content = np.frombuffer(b"".join(encoded), np.uint8)

    def __len__(self) -> int:
        return len(self.ends) - 1

    @overload
    def __getitem__(self, row: int) -> str: ...

    @overload
    def __getitem__(self, row: slice) -> list[str]: ...

    def __getitem__(self, row: int | slice) -> str | list[str]:
        if isinstance(row, slice):
            return [self[each] for each in range(*row.indices(len(self)))]
        row = range(len(self))[row]
        return self.content[self.ends[row] : self.ends[row + 1]].tobytes().decode("utf-8", "surrogatepass")

    @property
    def nbytes(self) -> int:
        return int(self.ends.nbytes + self.content.nbytes)


class RepeatedTextColumn:
    """A column of texts that stores each distinct text once."""

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
