"""The images and boxes of a file of annotations, on disk: boxes come in any order, and are wanted by image."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from utils.errors import UserError


class Row(NamedTuple):
    """An image or a box: the ``key`` of the image, the place of the row, and its text."""

    key: str
    place: str
    text: str


class StoredImage(NamedTuple):
    """An image, and place and text of each of its boxes by their kind."""

    image: Row
    boxes: dict[str, list[tuple[str, str]]]


class BoxStore:
    """Images and boxes in the file ``path``, which one process may fill and another one read; the memory that it takes does not
    grow with them. A context manager.

    Args:
        path: of the file.
        kinds: of boxes, such as objects and relations.
    """

    def __init__(self, path: Path, kinds: Iterable[str]):
        self.path, self.kinds = path, tuple(kinds)
        self._database = sqlite3.connect(path)
        for pragma in ("journal_mode=OFF", "synchronous=OFF"):  # nobody uses a file that is not whole
            self._database.execute(f"PRAGMA {pragma}")
        self._database.execute("CREATE TABLE IF NOT EXISTS images (key PRIMARY KEY, place, text)")
        for kind in self.kinds:
            self._database.execute(f"CREATE TABLE IF NOT EXISTS {kind} (key, place, text)")

    def add_images(self, rows: Iterable[Row]) -> None:
        """Add images; one whose key is there stays as it is.

        Raises:
            UserError: the disk is full.
        """
        self._add("INSERT OR IGNORE INTO images VALUES (?, ?, ?)", rows)

    def add_boxes(self, kind: str, rows: Iterable[Row]) -> None:
        """Add boxes of a kind; raises as :meth:`add_images`."""
        self._add(f"INSERT INTO {kind} VALUES (?, ?, ?)", rows)
        self._database.execute(f"CREATE INDEX IF NOT EXISTS {kind}_by_key ON {kind} (key)")

    def add_images_of_boxes(self, kind: str) -> None:
        """Add the images of the boxes of a kind: their keys, with the place of the first box and no text."""
        self._database.execute(
            f"INSERT OR IGNORE INTO images SELECT key, place, '' FROM {kind} GROUP BY key HAVING MIN(rowid) ORDER BY MIN(rowid)"
        )
        self._database.commit()

    def _add(self, statement: str, rows: Iterable[Row]) -> None:
        try:
            with self._database:
                self._database.executemany(statement, rows)
        except sqlite3.OperationalError as error:
            raise UserError(f"{self.path}: {error}; make room there, or give another --out") from None

    def __len__(self) -> int:
        """The number of images."""
        count: int = self._database.execute("SELECT COUNT(*) FROM images").fetchone()[0]
        return count

    def images(self) -> Iterator[StoredImage]:
        """The images in the order in which they were added, with their boxes."""
        for row in self._database.execute("SELECT key, place, text FROM images ORDER BY rowid"):
            boxes = {kind: self.boxes(kind, row[0]) for kind in self.kinds}
            yield StoredImage(Row(*row), boxes)

    def boxes(self, kind: str, key: str) -> list[tuple[str, str]]:
        """Place and text of each box of a kind in an image."""
        statement = f"SELECT place, text FROM {kind} WHERE key = ? ORDER BY rowid"
        return self._database.execute(statement, (key,)).fetchall()

    def of_no_image(self, kind: str, images: Path | None = None) -> tuple[int, Row | None]:
        """How many boxes of a kind are of no image, and the first of them.

        Args:
            kind: of the boxes.
            images: the file of the store that has the images; None: this one.
        """
        if images is not None:
            self._database.execute("ATTACH ? AS other", (str(images),))
        where = f"FROM {kind} WHERE key NOT IN (SELECT key FROM {'main' if images is None else 'other'}.images)"
        count = self._database.execute(f"SELECT COUNT(*) {where}").fetchone()[0]
        first = self._database.execute(f"SELECT key, place, text {where} ORDER BY rowid LIMIT 1").fetchone()
        return count, None if first is None else Row(*first)

    def __enter__(self) -> BoxStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._database.close()
