"""Temporary on-disk storage for tensors of the same shape."""

from __future__ import annotations

import math
import tempfile
from typing import Any

import numpy as np
import torch
from torch import Tensor

from utils.errors import UserError


class TensorSpool:
    """Stores tensors of the same shape and dtype in a temporary file. Tensors are appended in order and read back in blocks.

    Memory use does not grow with the number of tensors. If there is enough free memory, the system's file cache makes reading
    from the file as fast as reading from memory.
    """

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        self._shape: tuple[int, ...] = ()
        self._dtype: Any = None
        self._bytes_each = 0
        self.count = 0

    def append(self, tensors: Tensor) -> None:
        """Appends N tensors, passed as one tensor (N, ...), of the same shape and dtype as the previous tensors.

        Raises:
            UserError: if the disk is full.
        """
        array = tensors.detach().cpu().contiguous().numpy()
        if not self.count:
            self._shape, self._dtype = array.shape[1:], array.dtype
            self._bytes_each = self._dtype.itemsize * math.prod(self._shape)
        assert (array.shape[1:], array.dtype) == (self._shape, self._dtype), "tensors of a different shape or dtype"
        try:
            self._file.seek(self.count * self._bytes_each)
            self._file.write(array.tobytes())
            self._file.flush()
        except OSError as error:
            size = f"{self.count * self._bytes_each / 1e9:.1f} GB"
            raise UserError(
                f"cannot hold more than {size} of image states ({error.strerror})",
                where=tempfile.gettempdir(),
                remedy="set TMPDIR to a larger disk",
            ) from None
        self.count += len(array)

    def read(self, start: int, stop: int) -> Tensor:
        """Returns the tensors with the indices ``start`` to ``stop`` (exclusive), as one tensor (N, ...). Indices after the last
        tensor are ignored."""
        start, stop = min(start, self.count), min(stop, self.count)
        self._file.seek(start * self._bytes_each)
        content = bytearray(self._file.read((stop - start) * self._bytes_each))
        return torch.from_numpy(np.frombuffer(content, dtype=self._dtype).reshape(stop - start, *self._shape))

    def close(self) -> None:
        """Frees the disk space."""
        self._file.close()

    def __enter__(self) -> TensorSpool:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
