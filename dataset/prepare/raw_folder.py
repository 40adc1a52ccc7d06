"""Finds a data set's official files below a folder, at any depth, plain, gzipped or in zip archives."""

from __future__ import annotations

import codecs
import gzip
import hashlib
import os
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import IO, cast

from utils.errors import UserError, reason_of
from utils.files import check_regular, open_regular

MAX_FILES = 20_000_000
"""Maximum number of files below a folder. A folder with more files is probably not the folder of a data set."""

MAX_LINE_BYTES = 1 << 20
"""Maximum size in bytes of a line in a text file."""

CHUNK = 1 << 20
"""Number of bytes that are compared at a time."""

_DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, gzip.BadGzipFile)


@dataclass(frozen=True)
class RawFile:
    """An official file. ``path`` is its path or, for a file in a zip archive, the archive's path; ``member`` is then its name in
    the archive."""

    path: Path
    member: str | None = None

    def __str__(self) -> str:
        return f"{self.path}:{self.member}" if self.member else str(self.path)

    @contextmanager
    def open(self) -> Iterator[IO[bytes]]:
        """Opens the unpacked content for reading.

        Raises:
            UserError: the file cannot be read, or the archive is damaged. The error is also raised if reading fails inside the
                block.
        """
        try:
            check_regular(self.path)
            if self.member is not None:
                with zipfile.ZipFile(self.path) as archive, archive.open(self.member) as stream:
                    yield stream
            elif self.path.suffix == ".gz":
                with gzip.open(self.path) as unpacked:
                    yield cast(IO[bytes], unpacked)
            else:
                with self.path.open("rb") as stream:
                    yield stream
        except _DAMAGED as error:
            raise UserError(
                f"the archive is damaged or truncated ({error})", where=self, remedy="download it again"
            ) from None
        except RuntimeError as error:  # raised by zipfile for an encrypted member
            raise UserError(f"cannot be unpacked: {error}", where=self) from None
        except OSError as error:
            raise UserError(f"{self} cannot be read: {error.strerror or error}") from None

    def lines(self, max_bytes: int = MAX_LINE_BYTES) -> Iterator[tuple[str, str]]:
        """Yields the lines of a text file without line breaks, each with its location.

        Args:
            max_bytes: maximum size of a line in bytes; a longer line suggests the wrong file.

        Raises:
            UserError: the file cannot be read or is not UTF-8, or a line is too long.
        """
        decode = codecs.getdecoder("utf-8")
        with self.open() as stream:
            for number, line in enumerate(iter(partial(stream.readline, max_bytes), b""), start=1):
                location = f"{self}:{number}"
                if len(line) == max_bytes:
                    raise UserError(
                        f"a line of more than {max_bytes:,} bytes", where=location, remedy="is it the official file?"
                    )
                try:
                    yield location, decode(line)[0].removeprefix("\ufeff").rstrip("\r\n")
                except UnicodeDecodeError as error:
                    raise UserError(
                        f"not UTF-8: {error.reason}", where=location, remedy="is it the official file?"
                    ) from None

    def unpacked_size(self) -> int | None:
        """Returns the size of the unpacked content in bytes, or None for a gzipped file, which does not record it.

        Raises:
            UserError: the file cannot be read.
        """
        try:
            check_regular(self.path)
            if self.member is not None:
                with zipfile.ZipFile(self.path) as archive:
                    return archive.getinfo(self.member).file_size
            return None if self.path.suffix == ".gz" else self.path.stat().st_size
        except (*_DAMAGED, OSError) as error:
            raise UserError(f"{self} cannot be read: {reason_of(error)}") from None

    def digest(self) -> str:
        """Returns the SHA-256 of the stored file or, for a member of a zip archive, of the archive."""
        return file_digest(self.path)


class RawFolder:
    """Finds files below several folders by name.

    Args:
        roots: the folders, in the order in which they are searched.

    Raises:
        UserError: a folder does not exist.
    """

    def __init__(self, roots: Sequence[Path]):
        self.roots = list(dict.fromkeys(roots))
        self._found: dict[tuple[str, str], RawFile | None] = {}
        for root in self.roots:
            if not root.is_dir():
                raise UserError(f"{root} is not a folder", remedy="pass the folder of the official files")

    @cached_property
    def files(self) -> dict[str, list[Path]]:
        """All files below the roots, by name. Files with the same name are in a fixed order."""
        found: dict[str, list[Path]] = {}
        count = 0
        seen: set[str] = set()
        for root in self.roots:
            for folder, folders, names in os.walk(root, followlinks=True):
                if (real := os.path.realpath(folder)) in seen:  # symbolic links may form a loop
                    folders.clear()
                    continue
                seen.add(real)
                folders.sort()
                for name in sorted(names):
                    found.setdefault(name, []).append(Path(folder, name))
                count += len(names)
                if count > MAX_FILES:
                    raise UserError(
                        f"{root} has more than {MAX_FILES:,} files",
                        remedy="pass a folder that contains only the data set",
                    )
        return found

    @cached_property
    def _members(self) -> dict[str, list[RawFile]]:
        """The members of all zip archives, by file name."""
        found: dict[str, list[RawFile]] = {}
        for name, paths in self.files.items():
            if not name.endswith(".zip"):
                continue
            for path in paths:
                try:
                    check_regular(path)
                    with zipfile.ZipFile(path) as archive:
                        members = archive.namelist()
                except (*_DAMAGED, OSError) as error:
                    raise UserError(
                        f"{path} is not a complete zip archive ({reason_of(error)})", remedy="download it again"
                    ) from None
                for member in members:
                    found.setdefault(member.rpartition("/")[2], []).append(RawFile(path, member))
        return found

    def find(self, name: str, below: str = "") -> RawFile | None:
        """Finds the official file ``name``, which may be gzipped or in a zip archive; returns None if it does not exist.

        Args:
            name: name of the file.
            below: if not empty, only files in a folder of this name are considered.

        Raises:
            UserError: several files have this name, and their contents differ.
        """
        if (name, below) not in self._found:
            copies = list(self._copies(name, below))
            for other in copies[1:]:
                if not same_content(copies[0], other):
                    raise differing(copies[0], other, name)
            self._found[name, below] = copies[0] if copies else None
        return self._found[name, below]

    def _copies(self, name: str, below: str) -> list[RawFile]:
        """Returns all files of this name. If a folder called ``below`` contains another folder of this name, only files in the
        inner folder count."""
        plain = [RawFile(path) for candidate in (name, f"{name}.gz") for path in self.files.get(candidate, [])]
        found = plain + self._members.get(name, [])
        if not below:
            return found
        folders = {file: _folder_of(file, below) for file in found}
        outer = {parent for folder in folders.values() if folder is not None for parent in folder.parents}
        return [file for file, folder in folders.items() if folder is not None and folder not in outer]

    def need(self, *names: str) -> list[RawFile]:
        """Finds the official files with these names.

        Raises:
            UserError: files are missing; the message lists all of them.
        """
        found = {name: self.find(name) for name in names}
        missing = [name for name, file in found.items() if file is None]
        if missing:
            raise UserError(
                f"{', '.join(missing)} {'does' if len(missing) == 1 else 'do'} not exist, plain or zipped",
                where=", ".join(map(str, self.roots)),
                remedy="`python run.py prepare --list` lists the official files",
            )
        return [file for file in found.values() if file is not None]

    def folder(self, name: str) -> Path | None:
        """Returns the first folder of this name: one of the roots, or a folder below them."""
        for root in self.roots:
            if root.name == name:
                return root
        for paths in self.files.values():
            for path in paths:
                for parent in path.parents:
                    if parent.name == name:
                        return parent
        return None

    def sibling(self, path: Path, name: str) -> RawFile | None:
        """Returns the file ``name`` in the same folder as ``path``, or None if it does not exist."""
        found = path.parent / name
        return RawFile(found) if found.exists() else None


def _folder_of(file: RawFile, name: str) -> Path | None:
    """Returns the innermost folder ``name`` that contains a file. For a member of a zip archive, only the folders
    in the archive and the name of the archive count."""
    path = file.path if file.member is None else file.path.with_suffix("") / file.member
    outside = 0 if file.member is None else len(file.path.parts) - 1
    inside = [index for index, part in enumerate(path.parts[:-1]) if part == name and index >= outside]
    return Path(*path.parts[: inside[-1] + 1]) if inside else None


def same_content(one: RawFile, other: RawFile) -> bool:
    """Returns True if the unpacked contents of two files are equal. Their sizes are compared first."""
    if one.member is None and other.member is None and os.path.realpath(one.path) == os.path.realpath(other.path):
        return True
    sizes = {size for file in (one, other) if (size := file.unpacked_size()) is not None}
    if len(sizes) > 1:
        return False
    with one.open() as first, other.open() as second:
        while (piece := first.read(CHUNK)) == second.read(CHUNK):
            if not piece:
                return True
    return False


def differing(one: RawFile, other: RawFile, name: str) -> UserError:
    """Returns the error for two files of the same name that differ."""
    return UserError(
        f"{one} ({_size_text(one)}) and {other} ({_size_text(other)}) are both {name}, and their contents differ",
        remedy="remove the wrong one, or move it out of the folder",
    )


def _size_text(file: RawFile) -> str:
    size = file.unpacked_size()
    return f"{file.path.stat().st_size:,} bytes, gzipped" if size is None else f"{size:,} bytes"


def file_digest(path: Path) -> str:
    """Returns the SHA-256 of a file.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        with open_regular(path) as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise UserError(
            f"{path} cannot be read: {error.strerror or error}", remedy="check its permissions and the disk"
        ) from None
