"""Texts by number, on disk: for files that are read in one order and wanted in another."""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

from utils.errors import UserError


class PieceStore:
    """Texts by image number in a temporary file below ``folder``; the memory that it takes does not grow with them. As a context
    manager, it removes the file in the end."""

    def __init__(self, folder: Path):
        self._folder = tempfile.TemporaryDirectory(prefix="pieces-", dir=folder)
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
            raise UserError(f"{self._folder.name}: {error}; make room there, or give another --out") from None

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
