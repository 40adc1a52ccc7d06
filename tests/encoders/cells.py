"""The outcome of a cell of docs/encoders.md."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from utils.errors import UserError

R = TypeVar("R")


def refusal(check: Callable[[R, Path], None], row: R) -> str | None:
    """Returns None if a row passes a check, which gets an empty folder, and the reason if the project refuses it."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            check(row, Path(folder))
        except UserError as error:
            return str(error).replace(folder, "FOLDER")
    return None
