"""Texts by number, on disk: for files that are read in one order and wanted in another."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

from utils.errors import UserError


class PieceStore:
    """Texts by image number in the file ``path``, which one process may fill and another one read; the memory that it takes does
    not grow with them. A context manager."""

    def __init__(self, path: Path):
        self.path = path
        self._database = sqlite3.connect(path)
        for pragma in ("journal_mode=OFF", "synchronous=OFF"):  # nobody uses a file that is not whole
            self._database.execute(f"PRAGMA {pragma}")
        self._database.execute("CREATE TABLE IF NOT EXISTS piece (number INTEGER PRIMARY KEY, place TEXT, text TEXT)")

    def fill(self, pieces: Iterable[tuple[int, str, str]]) -> None:
        """Add pieces: number, place and text. A number that comes again replaces what was there.

        Raises:
            UserError: the disk is full.
        """
        try:
            with self._database:
                self._database.executemany("INSERT OR REPLACE INTO piece VALUES (?, ?, ?)", pieces)
        except sqlite3.OperationalError as error:
            raise UserError(f"{self.path}: {error}; make room there, or give another --out") from None

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
