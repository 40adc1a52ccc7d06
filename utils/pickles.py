"""Reading pickles as data, without running what they may hold of code."""

from __future__ import annotations

import pickle
from collections import defaultdict
from pathlib import Path
from typing import Any

from utils.errors import UserError

_CONTAINERS = {
    ("collections", "defaultdict"): defaultdict,
    ("__builtin__", "float"): float,
    ("__builtin__", "int"): int,
    ("builtins", "float"): float,
    ("builtins", "int"): int,
}


class _PlainUnpickler(pickle.Unpickler):
    """Takes lists, dictionaries (with a number as default, too), strings and numbers; whatever would need code is refused."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _CONTAINERS[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, but only plain data is read") from None


def read_plain_pickle(path: str, key: str) -> Any:
    """The plain data of a pickle, of which no code is run (Python 2's texts are read as Latin-1).

    Raises:
        UserError: with the config ``key``: no such file, damaged, or not plain data.
    """
    try:
        with Path(path).expanduser().open("rb") as stream:
            return _PlainUnpickler(stream, encoding="latin1").load()
    except FileNotFoundError:
        raise UserError(f"{key}: {path} does not exist; check the path (it is relative to {Path.cwd()})") from None
    # A damaged pickle can raise nearly anything.
    except Exception as error:
        raise UserError(f"{key}: {path} is not a pickle of plain data: {error}") from None
