"""Stores the rows of official files on disk, so that they can be looked up by image.

A file lists its objects in any order, but a record needs all objects of one image. Memory use does not grow with the size of the
file.
"""

from __future__ import annotations

import gc
import sqlite3
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, TypeVar

from dataset.prepare.counts import Counts
from dataset.prepare.processes import WorkerDiedError, in_order
from dataset.prepare.raw_folder import RawFile
from utils.errors import UserError
from utils.progress import progress_bar

R = TypeVar("R")


class KeyedRow(NamedTuple):
    """A row of a file: its ``kind``, for example "objects"; the ``key`` of the image that it belongs to; its ``location`` in the
    file; and its content as ``text``."""

    kind: str
    key: str
    location: str
    text: str


class RowFile:
    """The rows of one official file, in an SQLite file, which one process fills and another reads."""

    def __init__(self, path: Path):
        self.path = path
        self._database = sqlite3.connect(path)
        for pragma in ("journal_mode=OFF", "synchronous=OFF"):  # an incomplete database is never used
            self._database.execute(f"PRAGMA {pragma}")
        self._database.execute("CREATE TABLE IF NOT EXISTS rows (kind, key, location, text)")

    def add(self, rows: Iterable[KeyedRow]) -> None:
        """Adds rows, and an index by their key.

        Raises:
            UserError: the disk is full.
        """
        try:
            with self._database:
                self._database.executemany("INSERT INTO rows VALUES (?, ?, ?, ?)", rows)
                self._database.execute("CREATE INDEX by_key ON rows (kind, key)")
        except sqlite3.OperationalError as error:
            raise UserError(f"{error}", where=self.path, remedy="free some space there, or use another --out") from None

    def count(self, kind: str) -> int:
        """Returns the number of different keys of a kind."""
        [number] = self._database.execute("SELECT COUNT(DISTINCT key) FROM rows WHERE kind = ?", (kind,)).fetchone()
        return int(number)

    def first(self, kind: str) -> Iterator[KeyedRow]:
        """Yields the first row of each key of a kind, in the order of the file."""
        # With MIN, SQLite takes the other columns from the row that has the minimum.
        statement = "SELECT * FROM rows WHERE kind = ? GROUP BY key HAVING MIN(rowid) ORDER BY MIN(rowid)"
        for values in self._database.execute(statement, (kind,)):
            yield KeyedRow(*values)

    def find(self, kind: str, key: str) -> list[KeyedRow]:
        """Returns the rows of a kind and a key, in the order of the file."""
        statement = "SELECT * FROM rows WHERE kind = ? AND key = ? ORDER BY rowid"
        return [KeyedRow(*values) for values in self._database.execute(statement, (kind, key))]

    def skip_orphans(self, kind: str, images: RowFile, images_kind: str, counts: Counts) -> None:
        """Counts the rows of ``kind`` whose key does not occur among the rows of ``images_kind`` in ``images``, as "unknown
        image"."""
        self._database.execute("ATTACH ? AS images", (str(images.path),))
        known = "SELECT key FROM images.rows WHERE kind = ?"
        statement = f"SELECT * FROM main.rows WHERE kind = ? AND key NOT IN ({known}) ORDER BY rowid"
        for values in self._database.execute(statement, (kind, images_kind)):
            counts.skip("unknown image", values[2], f"the image is {values[1]!r}")
        self._database.execute("DETACH images")

    def close(self) -> None:
        self._database.close()


class RowFolder:
    """The rows of several official files, in a temporary folder that is removed when the context ends.

    Args:
        scratch: the folder in which the temporary folder is created.
    """

    def __init__(self, scratch: Path):
        self._folder = tempfile.TemporaryDirectory(prefix="rows-", dir=scratch)
        self._open: dict[str, RowFile] = {}

    def read(
        self, read: Callable[[str, RawFile, Counts], Iterator[KeyedRow]], files: Mapping[str, RawFile], workers: int
    ) -> Counts:
        """Reads files in worker processes, and returns the counts.

        Args:
            read: yields the rows of a file, given its name in ``files``; it must be a top-level function.
            files: official files by name.
            workers: number of processes; each reads one file at a time.

        Raises:
            UserError: if ``read`` raises it, or the disk is full.
        """
        counts = Counts()
        for counted in read_files(partial(fill, read, Path(self._folder.name)), files, workers):
            counts.add(counted)
        return counts

    def __getitem__(self, name: str) -> RowFile:
        """Returns the rows of the file ``name``, which must have been read."""
        if name not in self._open:
            path = Path(self._folder.name, name)
            if not path.exists():
                raise KeyError(f"the file {name!r} was not read")
            self._open[name] = RowFile(path)
        return self._open[name]

    def __enter__(self) -> RowFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for rows in self._open.values():
            rows.close()
        self._folder.cleanup()


def fill(read: Callable[[str, RawFile, Counts], Iterator[KeyedRow]], folder: Path, name: str, file: RawFile) -> Counts:
    """Stores the rows of a file; runs in a worker process."""
    counts, path = Counts(), folder / name
    path.unlink(missing_ok=True)  # left by a killed process, whose work this process repeats
    rows = RowFile(path)
    try:
        rows.add(read(name, file, counts))
    finally:
        rows.close()
    return counts


def read_files(read: Callable[[str, RawFile], R], files: Mapping[str, RawFile], workers: int) -> Iterator[R]:
    """Yields ``read(name, file)`` for each file, in order.

    Args:
        read: a top-level function, or a :class:`functools.partial` of one, since worker processes call it.
        files: official files by name.
        workers: number of processes, each of which reads one file at a time.
    """

    def died(named: tuple[str, RawFile]) -> R:
        raise WorkerDiedError(named[1])

    with _collector_off(), closing(in_order(partial(_read, read), files.items(), workers, died)) as results:
        yield from progress_bar(results, total=len(files), desc="reading", unit="file")


def _read(read: Callable[[str, RawFile], R], named: tuple[str, RawFile]) -> R:
    """Reads a file; runs in a worker process."""
    with _collector_off():
        return read(*named)


@contextmanager
def _collector_off() -> Iterator[None]:
    """Disables garbage collection inside the block, because it would repeatedly scan a file's millions of values, all of which
    are in use."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
