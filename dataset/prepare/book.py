"""What was made in a folder, a line for each file, so that a command that takes hours can go on where it was interrupted."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from dataset.prepare.folders import already_made
from utils.errors import UserError
from utils.files import replacing, write_text

ARGUMENTS, MADE, BROKEN, LOCK = "arguments.json", "made.jsonl", "broken.jsonl", "lock"


@dataclass(frozen=True)
class Entry:
    """What is known of a file: its ``source`` with its size, and what was counted. One that could not be made has an entry too.

    ``broken``: objects of place, reason and detail.
    """

    file: str
    source: str
    source_bytes: int
    videos: int = 0
    frames: int = 0
    bytes: int = 0
    broken: tuple[dict[str, str], ...] = ()


@contextmanager
def alone_in(out: Path, name: str) -> Iterator[None]:
    """Nobody else fills ``out`` (made if missing) meanwhile, on this machine or another that shares it; ``name`` as of a
    :class:`Book`.

    Raises:
        UserError: somebody does, or it cannot be written.
    """
    try:
        (out / name).mkdir(parents=True, exist_ok=True)
        lock = (out / name / LOCK).open("w")  # its file stays: who deletes it may delete another's
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(f"{out}: another run is filling it; let it end, or give another folder") from None
    except OSError as error:
        raise cannot_write(error, out) from None
    with lock:
        yield


class Book:
    """The files of a folder that are whole, which ``out/<name>/`` keeps: ``arguments.json``, ``made.jsonl`` and ``broken.jsonl``.

    Args:
        out: the folder, in which :func:`alone_in` lets nobody else be.
        name: of the command's own folder in it.
        arguments: of the making; those of a run that goes on are the same.
        names: of the files that are to be made.
        overwrite: remove what an earlier run made.

    Raises:
        UserError: the folder was made with other arguments, holds files of another origin, or cannot be written.
    """

    def __init__(self, out: Path, name: str, arguments: Mapping[str, Any], names: Iterable[str], *, overwrite: bool):
        self.out, self.folder = out, out / name
        self.broken_path = self.folder / BROKEN
        names = set(names)
        try:
            # What was broken once and is no longer asked for is forgotten.
            self.entries = {
                file: entry for file, entry in self._read().items() if file in names or (out / file).exists()
            }
            if not already_made(out, f"{name}/{ARGUMENTS}", arguments, overwrite=overwrite):
                self._claim(arguments, names)
            self._write()
        except OSError as error:
            raise cannot_write(error, out) from None

    def whole(self, name: str, source: Path) -> Entry | None:
        """The entry of a file that need not be made again: it and its source are of the sizes that they had.

        Raises:
            UserError: it was made from another source.
        """
        entry = self.entries.get(name)
        path = self.out / name
        if entry is None or not path.exists():
            return None
        if entry.source != str(source.resolve()):
            raise UserError(
                f"{path} was made from {entry.source}, not from {source}; give another folder, or --overwrite"
            )
        sizes = (path.stat().st_size, source.stat().st_size)
        return entry if sizes == (entry.bytes, entry.source_bytes) else None

    def add(self, entry: Entry) -> None:
        """Note that a file is whole, or that it cannot be made."""
        self.entries[entry.file] = entry
        with (self.folder / MADE).open("a", encoding="utf-8", newline="\n") as stream:
            stream.write(json.dumps(asdict(entry)) + "\n")

    def tell_broken(self) -> None:
        """Write the file of everything that is broken."""
        lines = [json_line(each) for entry in self.entries.values() for each in entry.broken]
        with replacing(self.broken_path) as path:
            path.write_bytes(b"".join(lines))

    def _claim(self, arguments: Mapping[str, Any], names: Iterable[str]) -> None:
        foreign = next((name for name in names if name not in self.entries and (self.out / name).exists()), None)
        if foreign is not None:
            raise UserError(f"{self.out} holds {foreign}, which this command did not make; give an empty folder")
        for name in self.entries:
            (self.out / name).unlink(missing_ok=True)
        self.entries = {}
        for file in (ARGUMENTS, MADE, BROKEN):
            (self.folder / file).unlink(missing_ok=True)
        write_text(self.folder / ARGUMENTS, json.dumps({"arguments": dict(arguments)}, indent=2) + "\n")

    def _read(self) -> dict[str, Entry]:
        """The last line of each file; one that was cut when the run was killed is of a file that is made again."""
        path = self.folder / MADE
        entries = {}
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
            try:
                entry = Entry(**json.loads(line))
            except (ValueError, TypeError):
                continue
            entries[entry.file] = replace(entry, broken=tuple(entry.broken))
        return entries

    def _write(self) -> None:
        write_text(self.folder / MADE, "".join(json.dumps(asdict(entry)) + "\n" for entry in self.entries.values()))


def json_line(values: Mapping[str, Any]) -> bytes:
    """An object as a line, in UTF-8; half of a surrogate pair, which UTF-8 cannot spell, as JSON's escape of it."""
    return (json.dumps(values, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")


def cannot_write(error: OSError, out: Path) -> UserError:
    """The one line for a full disk, or a folder that is not the user's."""
    return UserError(f"{error.filename or out} cannot be written: {error.strerror or error}; the same command goes on")
