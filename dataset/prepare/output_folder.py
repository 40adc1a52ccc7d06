"""The output folder of a command. The folder is locked while the command fills it, filling it can be resumed file by file, and it
is completed atomically."""

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

from dataset.shards.remote.shards import RemoteShard
from utils.errors import UserError
from utils.files import read_json, replacing
from utils.folder_lock import NO_LOCKS

JOURNAL = ".building"
"""Name of the journal, a file in an unfinished folder. The command that fills the folder locks it."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """The entry of a finished file. If all of the file's records were skipped, there is an entry but no file.

    Attributes:
        file: name of the file.
        source: path or URL of the file that it was built from.
        source_bytes: size of the source in bytes.
        bytes: size of the file in bytes.
        counts: counts of the records in the file.
        broken: the skipped records, as objects with the keys place, reason and detail.
    """

    file: str
    source: str
    source_bytes: int
    bytes: int
    counts: Mapping[str, Any] = field(default_factory=dict)
    broken: Sequence[Mapping[str, str]] = ()


@dataclass
class OutputFolder:
    """Context manager that reserves a folder for a command. Until the block ends, no other run, on any machine, can fill the
    folder.

    While the command is running, ``out/.building`` contains the name of the manifest, the arguments, and a line for each finished
    file. :meth:`close` writes ``out/<manifest>`` last and atomically, so a folder with a manifest is complete. A run that ends
    without ``close`` leaves ``.building`` behind. The next run with the same arguments keeps the finished files and removes the
    others.

    Args:
        out: the folder, which is created if it does not exist.
        manifest: path of the manifest below ``out``. Each command has its own.
        arguments: everything that determines the content, as JSON values.
        owned: files and folders that the command writes below ``out``. Only these, and files with an entry, may be removed.
        overwrite: whether to remove the output of previous runs of the command.

    Attributes:
        complete: whether the folder already had a manifest with these arguments on entry. Nothing is removed in this case.
        entries: the finished files by name, including files of previous runs.

    Raises:
        UserError: on entry, if the folder was built with different arguments, has files of a different origin, is being filled by
            another run, or cannot be written. In the block, an OSError is raised as a UserError about a file that cannot be
            written.
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

    def finished(self, name: str, source: Path | RemoteShard, source_bytes: int) -> Entry | None:
        """Returns the entry of a finished file if the sizes of the file and its source are unchanged, otherwise None.

        Raises:
            UserError: the file was built from a different source.
        """
        entry, path = self.entries.get(name), self.out / name
        if entry is None or not path.exists():
            return None
        if entry.source not in ("", name_of_source(source)):  # "": the source is not one file, or was not recorded
            raise UserError(
                f"{path} was built from {entry.source}, not from {source}", remedy="use another folder, or --overwrite"
            )
        return entry if (path.stat().st_size, source_bytes) == (entry.bytes, entry.source_bytes) else None

    def add(self, entry: Entry) -> None:
        """Records that a file is finished."""
        self.entries[entry.file] = entry
        self._note(asdict(entry))

    def write_broken(self, name: str) -> None:
        """Writes the skipped records of all entries to a file, one JSON object per line."""
        (self.out / name).parent.mkdir(parents=True, exist_ok=True)
        with replacing(self.out / name) as path:
            path.write_bytes(b"".join(json_line(line) for entry in self.entries.values() for line in entry.broken))

    def close(self, facts: Mapping[str, Any] | None = None) -> None:
        """Writes the manifest (arguments, facts, entries), which completes the folder, and releases the lock."""
        files = {"files": [asdict(entry) for entry in self.entries.values()]} if self.entries else {}
        path = self.out / self.manifest
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as part:
            part.write_bytes(json_line({"arguments": dict(self.arguments), **(facts or {}), **files}, indent=2))
        self._journal.truncate(0)
        self.release()

    def release(self) -> None:
        """Releases the lock. An empty journal is removed, because the folder is complete or was never claimed."""
        if self._journal.closed:
            return
        if os.fstat(self._journal.fileno()).st_size == 0:
            (self.out / JOURNAL).unlink(missing_ok=True)
        with suppress(OSError):  # the file system does not support locks
            # Closing the file would not release the lock if a forked worker still has the file open.
            fcntl.flock(self._journal, fcntl.LOCK_UN)
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
            with suppress(
                UserError
            ):  # a damaged manifest is only read if it is overwritten, so the damage does not matter
                notes += read_facts(self.out / self.manifest).get("files", [])
        for line in lines:
            with suppress(ValueError):  # an incomplete line of a killed run; its file is rebuilt
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
        # Entries of files that do not exist are dropped, unless the command may still ask for them: all records of such a file
        # were skipped. A command that does not know the names of its files in advance owns none.
        self.entries = {
            name: entry
            for name, entry in self.entries.items()
            if name in self.owned or (self.out / name).exists() or not (self.owned or entry.bytes)
        }

    def _note(self, values: Mapping[str, Any]) -> None:
        """Appends a line to the journal. The line starts with a line break, because the last line may be incomplete."""
        self._journal.write("\n" + json.dumps(values))
        self._journal.flush()

    def _cannot_write(self, error: OSError) -> UserError:
        remedy = "; rerun the same command to resume" if self.entries else ""
        return UserError(f"{error.filename or self.out} cannot be written: {error.strerror or error}{remedy}")


def name_of_source(source: Path | RemoteShard) -> str:
    """Returns the absolute path or the URL of the source of a file."""
    return str(source.resolve() if isinstance(source, Path) else source)


def already_made(out: Path, manifest: str, arguments: Mapping[str, Any], *, overwrite: bool) -> bool:
    """Returns True if ``out`` is complete and was built with ``arguments``; always False with ``overwrite``.

    Raises:
        UserError: the folder was built with different arguments, and ``overwrite`` is False.
    """
    if overwrite or not (out / manifest).exists():
        return False
    _check_arguments(out, read_facts(out / manifest).get("arguments"), arguments)
    return True


def read_facts(path: Path) -> dict[str, Any]:
    """Returns the content of a manifest.

    Raises:
        UserError: the file is not a JSON object.
    """
    try:
        facts = read_json(path)
    except ValueError:
        facts = None
    if not isinstance(facts, dict):
        raise UserError(f"{path} is not a JSON object", remedy="remove it, or pass --overwrite")
    return facts


def json_line(values: Mapping[str, Any], indent: int | None = None) -> bytes:
    """Returns an object as a line in UTF-8. Half of a surrogate pair, which UTF-8 cannot encode, becomes an escape sequence."""
    return (json.dumps(values, indent=indent, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")


def _lock(out: Path) -> IO[str]:
    """Opens and locks the journal."""
    path = out / JOURNAL
    while True:
        journal = path.open("a+", encoding="utf-8", newline="\n")
        try:
            fcntl.flock(journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(journal.fileno()).st_ino == path.stat().st_ino:
                return journal
        except BlockingIOError:
            journal.close()
            raise UserError(
                "another run is filling this folder", where=out, remedy="wait until it ends, or use another folder"
            ) from None
        except FileNotFoundError:
            pass
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            logger.warning(
                "%s: the file system does not support locks (%s); make sure that no other run fills this folder",
                out,
                error.strerror,
            )
            return journal
        journal.close()  # another run closed the folder in between and removed the file that this run has locked


def _check_arguments(out: Path, made_with: Any, arguments: Mapping[str, Any]) -> None:
    if made_with == dict(arguments):
        return
    difference = "not recorded"
    if isinstance(made_with, dict):
        keys = [key for key in {**made_with, **arguments} if made_with.get(key) != arguments.get(key)]
        difference = ", ".join(f"{key}={made_with.get(key)}, not {arguments.get(key)}" for key in keys)
    raise UserError(
        f"{out} was built with different arguments ({difference})", remedy="use another folder, or --overwrite"
    )


def _foreign(out: Path, name: str) -> UserError:
    return UserError(f"{out} contains {name}, which this command did not write", remedy="use an empty folder")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
