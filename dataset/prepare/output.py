"""The folder that a command fills: claimed under a lock, resumed file by file where a command can, closed atomically."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import shutil
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from utils.errors import UserError
from utils.files import read_json, replacing
from utils.folder_lock import NO_LOCKS

JOURNAL = ".building"
"""File of a folder that is being filled. The command that fills it holds a lock on it."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """A finished file: its ``source`` and both sizes in bytes, counts by kind, and the records that are left out of it.

    ``broken``: objects with place, reason and detail. A file of which nothing is left has an entry, but does not exist.
    """

    file: str
    source: str
    source_bytes: int
    bytes: int
    counts: Mapping[str, int] = field(default_factory=dict)
    broken: Sequence[Mapping[str, str]] = ()


@dataclass
class OutputFolder:
    """Context manager: the folder is this command's until the block ends; no other run, on any machine, fills it meanwhile.

    While a command works, ``out/.building`` names its manifest and arguments, and has a line for each finished file.
    :meth:`close` writes ``out/<manifest>``, atomically and last: a folder that has it is complete. A run that ends without
    ``close`` leaves ``.building``: with the same arguments, the next run keeps the finished files and removes the others.

    Args:
        out: the folder; made if missing.
        manifest: path of the manifest below ``out``. It stands for the command.
        arguments: what decides the content, as JSON values.
        owned: files and folders that the command writes below ``out``. Only these, and files with an entry, are ever removed.
        overwrite: remove what earlier runs of the command made.

    Attributes:
        complete: there was a manifest with these arguments on entering; then nothing was removed.
        entries: the finished files by name, those of earlier runs too.

    Raises:
        UserError: (on entering) the folder was made with other arguments, holds files of another origin, is being filled by
            another run, or cannot be written; (in the block) an OSError, which is taken for a file that cannot be written.
    """

    out: Path
    manifest: str
    arguments: Mapping[str, Any]
    owned: Collection[str]
    overwrite: bool = False
    complete: bool = field(default=False, init=False)
    entries: dict[str, Entry] = field(default_factory=dict, init=False)
    _journal: IO[str] = field(init=False)

    def __enter__(self) -> OutputFolder:
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            self._journal = _lock(self.out)
            with ExitStack() as on_error:
                on_error.callback(self.release)
                self._claim()
                on_error.pop_all()
        except OSError as error:
            raise self._cannot_write(error) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()
        if isinstance(error, OSError):
            raise self._cannot_write(error) from error

    def finished(self, name: str, source: Path) -> Entry | None:
        """The entry of a file that need not be made again: it and its source have the sizes that they had.

        Raises:
            UserError: it was made from another source.
        """
        entry, path = self.entries.get(name), self.out / name
        if entry is None or not path.exists():
            return None
        if entry.source != str(source.resolve()):
            raise UserError(
                f"{path} was made from {entry.source}, not from {source}; give another folder, or --overwrite"
            )
        same = source.exists() and (path.stat().st_size, source.stat().st_size) == (entry.bytes, entry.source_bytes)
        return entry if same else None

    def add(self, entry: Entry) -> None:
        """Note that a file is finished, or that nothing is left of it."""
        self.entries[entry.file] = entry
        self._note(asdict(entry))

    def write_broken(self, name: str) -> None:
        """Write the broken records of all entries to a file, an object a line."""
        (self.out / name).parent.mkdir(parents=True, exist_ok=True)
        with replacing(self.out / name) as path:
            path.write_bytes(b"".join(json_line(line) for entry in self.entries.values() for line in entry.broken))

    def close(self, facts: Mapping[str, Any] | None = None) -> None:
        """Write the manifest (arguments, facts, entries) and give up the lock; the folder is complete from then on."""
        files = {"files": [asdict(entry) for entry in self.entries.values()]} if self.entries else {}
        path = self.out / self.manifest
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as part:
            part.write_bytes(json_line({"arguments": dict(self.arguments), **(facts or {}), **files}, indent=2))
        self._journal.truncate(0)
        self.release()

    def release(self) -> None:
        """Give up the lock. A journal without content, of a folder that is complete or not the command's, goes."""
        if self._journal.closed:
            return
        if os.fstat(self._journal.fileno()).st_size == 0:
            (self.out / JOURNAL).unlink(missing_ok=True)
        with suppress(OSError):  # the disk has no locks
            fcntl.flock(self._journal, fcntl.LOCK_UN)  # closing alone does not: a forked worker may have the file too
        self._journal.close()

    def _claim(self) -> None:
        self._journal.seek(0)
        made_by, *lines = self._journal.read().split("\n")
        if made_by not in ("", self.manifest):
            raise _foreign(self.out, f"an unfinished {made_by}")
        manifest_exists = (self.out / self.manifest).exists()
        self.complete = already_made(self.out, self.manifest, self.arguments, overwrite=self.overwrite)
        notes = []
        if manifest_exists:
            with suppress(UserError):  # that it is damaged matters to nobody who overwrites it
                notes += read_facts(self.out / self.manifest).get("files", [])
        for line in lines:
            with suppress(ValueError):  # cut when the run was killed: its file is made again
                notes.append(json.loads(line))
        for note in notes:
            if "file" in note:
                self.entries[note["file"]] = Entry(**note)
        present = [name for name in sorted({*self.owned, *self.entries}) if (self.out / name).exists()]
        if present and not made_by and not manifest_exists:
            raise _foreign(self.out, present[0])
        if self.overwrite:
            self.entries = {}
        elif self.entries and not self.complete:
            made_with = next((note["arguments"] for note in notes if "arguments" in note), None)
            _check_arguments(self.out, made_with, self.arguments)
        if not self.complete:
            if not self.entries:
                self._journal.truncate(0)
                self._journal.write(self.manifest)
                self._note({"arguments": dict(self.arguments)})
            for name in (self.manifest, *(name for name in present if name not in self.entries)):
                _remove(self.out / name)
        # A file that failed and is no longer asked for is forgotten.
        self.entries = {n: e for n, e in self.entries.items() if n in self.owned or (self.out / n).exists()}

    def _note(self, values: Mapping[str, Any]) -> None:
        """Append a line to the journal, on a line of its own even after one that was cut."""
        self._journal.write("\n" + json.dumps(values))
        self._journal.flush()

    def _cannot_write(self, error: OSError) -> UserError:
        remedy = "; the same command resumes" if self.entries else ""
        return UserError(f"{error.filename or self.out} cannot be written: {error.strerror or error}{remedy}")


def already_made(out: Path, manifest: str, arguments: Mapping[str, Any], *, overwrite: bool) -> bool:
    """Whether ``out`` is complete and is what ``arguments`` would make; always False with ``overwrite``.

    Raises:
        UserError: the folder was made with other arguments and ``overwrite`` is off.
    """
    if overwrite or not (out / manifest).exists():
        return False
    _check_arguments(out, read_facts(out / manifest).get("arguments"), arguments)
    return True


def read_facts(path: Path) -> dict[str, Any]:
    """The content of a manifest.

    Raises:
        UserError: it is no JSON object.
    """
    try:
        facts = read_json(path)
    except ValueError:
        facts = None
    if not isinstance(facts, dict):
        raise UserError(f"{path} is no JSON object; remove it, or give --overwrite")
    return facts


def json_line(values: Mapping[str, Any], indent: int | None = None) -> bytes:
    """An object as a line, in UTF-8; half of a surrogate pair, which UTF-8 cannot spell, as JSON's escape of it."""
    return (json.dumps(values, indent=indent, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")


def _lock(out: Path) -> IO[str]:
    """The journal, open and locked."""
    path = out / JOURNAL
    while True:
        journal = path.open("a+", encoding="utf-8", newline="\n")
        try:
            fcntl.flock(journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(journal.fileno()).st_ino == path.stat().st_ino:
                return journal
        except BlockingIOError:
            journal.close()
            raise UserError(f"{out}: another run is filling it; let it end, or give another folder") from None
        except FileNotFoundError:
            pass
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            logger.warning("%s: the disk has no locks (%s); let no other run fill it", out, error.strerror)
            return journal
        journal.close()  # another run closed the folder between the two calls: the locked file is its old journal


def _check_arguments(out: Path, made_with: Any, arguments: Mapping[str, Any]) -> None:
    if made_with == dict(arguments):
        return
    difference = "which it does not name"
    if isinstance(made_with, dict):
        keys = [key for key in {**made_with, **arguments} if made_with.get(key) != arguments.get(key)]
        difference = ", ".join(f"{key}={made_with.get(key)}, not {arguments.get(key)}" for key in keys)
    raise UserError(f"{out} was made with other arguments ({difference}); give another folder, or --overwrite")


def _foreign(out: Path, name: str) -> UserError:
    return UserError(f"{out} holds {name}, which this command did not make; give an empty folder")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
