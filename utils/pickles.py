"""Reading pickles as plain data, without running their code."""

from __future__ import annotations

import pickle
from collections import defaultdict
from pathlib import Path
from typing import IO, Any

from utils.errors import UserError
from utils.files import expanded

_CONTAINERS = {
    ("collections", "defaultdict"): defaultdict,
    ("__builtin__", "float"): float,
    ("__builtin__", "int"): int,
    ("builtins", "float"): float,
    ("builtins", "int"): int,
}


class _PlainUnpickler(pickle.Unpickler):
    """Unpickler for lists, dictionaries (``defaultdict`` of numbers included), strings and numbers; refuses all else."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _CONTAINERS[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, but only plain data is read") from None


def read_plain_pickle(path: str, key: str) -> Any:
    """The plain data of a pickle; no code in it runs. Strings of Python 2 are decoded as Latin-1.

    Raises:
        UserError: with the config ``key``, if the file is missing, damaged, or holds more than plain data.
    """
    try:
        with expanded(path).open("rb") as stream:
            return load_plain_pickle(stream)
    except FileNotFoundError:
        raise UserError(f"{key}: {path} does not exist; check the path (it is relative to {Path.cwd()})") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{key}: {path} is not a pickle of plain data: {error}") from None


def load_plain_pickle(stream: IO[bytes]) -> Any:
    """As :func:`read_plain_pickle`, from an open file.

    Raises:
        ValueError: it is damaged, or holds more than plain data.
    """
    try:
        return _PlainUnpickler(stream, encoding="latin1").load()
    except OSError:
        raise
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise ValueError(str(error)) from None
