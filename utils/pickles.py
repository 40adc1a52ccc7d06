"""Reads pickles that contain only plain data, without executing any code in them."""

from __future__ import annotations

import pickle
from collections import defaultdict
from typing import IO, Any

from utils.errors import UserError
from utils.files import expanded, path_remedy

_CONTAINERS = {
    ("collections", "defaultdict"): defaultdict,
    ("__builtin__", "float"): float,
    ("__builtin__", "int"): int,
    ("builtins", "float"): float,
    ("builtins", "int"): int,
}


class _PlainUnpickler(pickle.Unpickler):
    """Unpickles lists, dictionaries (including ``defaultdict`` with numbers), strings and numbers. Rejects everything else."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _CONTAINERS[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it refers to {module}.{name}, but only plain data is allowed") from None


def read_plain_pickle(path: str, key: str) -> Any:
    """Reads the plain data in a pickle without executing code. Python 2 strings are decoded as Latin-1.

    Raises:
        UserError: if the file is missing or damaged, or contains anything other than plain data. The message names the config key
            ``key``.
    """
    try:
        with expanded(path).open("rb") as stream:
            return load_plain_pickle(stream)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist", where=key, remedy=path_remedy(path)) from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not a pickle of plain data: {error}", where=key) from None


def load_plain_pickle(stream: IO[bytes]) -> Any:
    """Like :func:`read_plain_pickle`, but reads an open file.

    Raises:
        ValueError: if the file is damaged or contains anything other than plain data.
    """
    try:
        return _PlainUnpickler(stream, encoding="latin1").load()
    except OSError:
        raise
    except Exception as error:  # a damaged pickle can raise almost any exception
        raise ValueError(str(error)) from None
