"""The result of one cell of docs/encoders.md."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from utils.errors import UserError

R = TypeVar("R")


def refusal(check: Callable[[R, Path], None], row: R) -> str | None:
    """Runs a check on a row, with an empty folder. Returns None if it passes, or the project's reason for rejecting the
    combination."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            check(row, Path(folder))
        except UserError as error:
            return str(error).replace(folder, "FOLDER")
    return None
