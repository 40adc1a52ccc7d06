"""Columns of texts, and of image and video sources, in a few arrays.

Forked worker processes share memory with the training process until one of them writes to it. Even reading a Python object writes
to it, because of its reference count. Arrays store millions of texts without an object for each text, so workers can share them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import overload

import numpy as np

from dataset.media.sources import ImageSource, VideoSource


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


class SourceColumn(Sequence[ImageSource | VideoSource]):
    """A sequence of images, or of videos, that stores their paths and locations in arrays, and creates a source object when an
    item is accessed. Sources without a path are stored unchanged."""

    def __init__(self, sources: Sequence[ImageSource | VideoSource]):
        self._paths = RepeatedTextColumn("" if source.path is None else str(source.path) for source in sources)
        self._without_path = {row: source for row, source in enumerate(sources) if source.path is None}
        self._kind = type(sources[0]) if sources else ImageSource
        # A location is a file, or a file and the index of a row, so the locations of a file differ only at their ends.
        parts = [source.location.rpartition(":" if source.location[-1:].isdigit() else "[") for source in sources]
        self._files = RepeatedTextColumn(before + separator for before, separator, _ in parts)
        self._rows = TextColumn(row for _, _, row in parts)

    def __len__(self) -> int:
        return len(self._paths)

    @overload
    def __getitem__(self, row: int) -> ImageSource | VideoSource: ...

    @overload
    def __getitem__(self, row: slice) -> list[ImageSource | VideoSource]: ...

    def __getitem__(self, row: int | slice) -> ImageSource | VideoSource | list[ImageSource | VideoSource]:
        if isinstance(row, slice):
            return [self[each] for each in range(*row.indices(len(self)))]
        row = range(len(self))[row]
        if row in self._without_path:
            return self._without_path[row]
        return self._kind(self.location(row), path=Path(self._paths[row]))

    def location(self, row: int) -> str:
        """Returns the location of the record of a source."""
        return self._files[row] + self._rows[row]

    def file_indices(self) -> np.ndarray:
        """Returns the index (N,) of the file of each source. Two indices are equal if and only if the files are equal."""
        indices = self._paths.numbers.astype(np.int64)
        for row in self._without_path:
            indices[row] = -1 - row
        return indices

    @property
    def nbytes(self) -> int:
        """Size of the arrays in bytes."""
        return self._paths.nbytes + self._files.nbytes + self._rows.nbytes
