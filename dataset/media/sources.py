"""Stores a column of image and video sources in a few arrays; see :mod:`dataset.columns`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import overload

import numpy as np

from dataset.columns import RepeatedTextColumn, TextColumn
from dataset.media.video import VideoSource
from dataset.records.schema import ImageSource


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
