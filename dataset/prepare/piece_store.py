"""Texts by number, on disk: for files that are read in one order and wanted in another."""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Iterable
from types import TracebackType

from utils.errors import UserError


class PieceStore:
    """Context manager: texts by image number in a temporary file; the memory it takes does not grow with them."""

    def __init__(self, folder: str | None = None):
        self._folder = tempfile.TemporaryDirectory(prefix="prepare-", dir=folder)
        self._database = sqlite3.connect(f"{self._folder.name}/pieces")
        for pragma in ("journal_mode=OFF", "synchronous=OFF"):  # nothing of it outlives the process
            self._database.execute(f"PRAGMA {pragma}")
        self._database.execute("CREATE TABLE piece (number INTEGER PRIMARY KEY, place TEXT, text TEXT)")

    def fill(self, pieces: Iterable[tuple[int, str, str]]) -> None:
        """Add pieces: number, place and text. A number that comes again replaces what was there.

        Raises:
            UserError: the disk is full.
        """
        try:
            with self._database:
                self._database.executemany("INSERT OR REPLACE INTO piece VALUES (?, ?, ?)", pieces)
        except sqlite3.OperationalError as error:
            raise UserError(f"{self._folder.name}: {error}; set TMPDIR to a larger disk") from None

    def get(self, number: int) -> tuple[str, str] | None:
        """Place and text of a number, if there is one."""
        row = self._database.execute("SELECT place, text FROM piece WHERE number = ?", (number,)).fetchone()
        return None if row is None else (row[0], row[1])

    def __enter__(self) -> PieceStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._database.close()
        self._folder.cleanup()
