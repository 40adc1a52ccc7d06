"""Tensors of one shape kept on disk instead of in memory."""

from __future__ import annotations

import math
import tempfile
from typing import Any

import numpy as np
import torch
from torch import Tensor

from utils.errors import UserError


class TensorSpool:
    """Rows of one shape and type, appended in order and read back in blocks, in a temporary file that nobody else sees.

    Memory does not grow with the number of rows; where there is plenty, the system's file cache makes reading as fast.
    """

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        self._shape: tuple[int, ...] = ()
        self._dtype: Any = None
        self._bytes_per_row = 0
        self.rows = 0

    def append(self, rows: Tensor) -> None:
        """Add (N, ...) rows; all of one shape and type.

        Raises:
            UserError: if the disk is full.
        """
        array = rows.detach().cpu().contiguous().numpy()
        if not self.rows:
            self._shape, self._dtype = array.shape[1:], array.dtype
            self._bytes_per_row = self._dtype.itemsize * math.prod(self._shape)
        assert (array.shape[1:], array.dtype) == (self._shape, self._dtype), "rows of another shape or type"
        try:
            self._file.seek(self.rows * self._bytes_per_row)
            self._file.write(array.tobytes())
            self._file.flush()
        except OSError as error:
            written = f"{self.rows * self._bytes_per_row / 1e9:.1f} GB"
            raise UserError(
                f"{tempfile.gettempdir()}: cannot hold more than {written} of image states ({error.strerror}); "
                "set TMPDIR to a larger disk"
            ) from None
        self.rows += len(array)

    def read(self, start: int, stop: int) -> Tensor:
        """Rows ``start`` to ``stop`` (not included, cut at the end)."""
        start, stop = min(start, self.rows), min(stop, self.rows)
        self._file.seek(start * self._bytes_per_row)
        content = bytearray(self._file.read((stop - start) * self._bytes_per_row))
        return torch.from_numpy(np.frombuffer(content, dtype=self._dtype).reshape(stop - start, *self._shape))

    def close(self) -> None:
        """Give the disk space back."""
        self._file.close()

    def __enter__(self) -> TensorSpool:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
