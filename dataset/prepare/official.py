"""Parts of every command that makes records of official files: flags, reading them, plain or packed, and writing."""

from __future__ import annotations

import gzip
import sys
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dataset.prepare.folders import tally, write_records
from dataset.prepare.output import Entry, OutputFolder
from dataset.prepare.raw_folder import RawFile, differing, same_content
from utils.commands import FLAGS
from utils.errors import UserError
from utils.files import read_json, replacing


def read_lines(path: Path) -> list[str]:
    """The lines of a text file, or of ``path`` with ``.gz`` where only that is there; without their ends.

    Raises:
        UserError: there is neither, it cannot be read, or both are there and their contents differ.
    """
    there = [each for each in (path, path.with_name(path.name + ".gz")) if each.is_file()]
    if not there:
        raise UserError(f"{path} is missing, and so is {path.name}.gz; check the folder of the official files")
    if len(there) == 2 and not same_content(RawFile(there[0]), RawFile(there[1])):
        raise differing(RawFile(there[0]), RawFile(there[1]), path.name)
    try:
        content = there[0].read_bytes()
        text = (content if there[0] == path else gzip.decompress(content)).decode("utf-8")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    # Not splitlines(), which also ends a line at separators that a caption may hold.
    return text.rstrip("\n").split("\n")


def read_object(path: Path, key: str) -> dict[str, Any]:
    """A JSON object with a list ``key``.

    Raises:
        UserError: it is missing, no JSON, or has no such list.
    """
    try:
        content = read_json(path)
    except FileNotFoundError:
        raise UserError(f"{path} is missing; check the path of the official file") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    if not isinstance(content, dict) or not isinstance(content.get(key), list):
        raise UserError(f"{path} has no list {key!r}; is it the official file?")
    return content


@FLAGS
@dataclass(frozen=True, kw_only=True)
class OutputFlags:
    """The folder that a command of this package fills.

    Attributes:
        out: folder to fill; made if missing.
        overwrite: replace what this command made in --out.
    """

    out: Path
    overwrite: bool = False


def manifest_of(command: str) -> str:
    """Path of a command's manifest below the output folder, which can be read as a folder of shards: so it has a folder of its
    own."""
    return f"_{command}/manifest.json"


def write_splits(
    command: str,
    flags: OutputFlags,
    arguments: Mapping[str, Any],
    splits: Mapping[str, Iterable[Mapping[str, Any]]],
) -> None:
    """Write ``<split>.jsonl`` for each split, unless the folder is complete, and print one line."""
    files = {f"{split}.jsonl": records for split, records in splits.items()}
    with OutputFolder(flags.out, manifest_of(command), arguments, files, overwrite=flags.overwrite) as folder:
        if folder.complete:
            sys.stdout.write(f"{folder.out} is already complete with these arguments; nothing to do\n")
            return
        counts = {name: write_records(folder.out / name, records) for name, records in files.items()}
        folder.close({"records": counts})
    sys.stdout.write(f"{folder.out}: {', '.join(f'{count} in {name}' for name, count in counts.items())}\n")


def write_by_source(
    command: str,
    flags: OutputFlags,
    arguments: Mapping[str, Any],
    sources: Mapping[str, Path],
    records: Callable[[Path], Iterable[Mapping[str, Any]]],
    unit: str,
    beside: Sequence[str] = (),
) -> None:
    """Write a file of records for each source, unless it is finished, and print a line for each. ``beside``: more folders that
    ``records`` fills; what is in them belongs to the command."""
    owned = (*sources, *beside)
    with OutputFolder(flags.out, manifest_of(command), arguments, owned, overwrite=flags.overwrite) as folder:
        # Without the folders, the records are made again.
        if not all((folder.out / name).exists() for name in beside):
            folder.entries.clear()
        for name, source in sources.items():
            path = folder.out / name
            entry = folder.finished(name, source)
            if entry is None:
                with replacing(path) as part:
                    counts = {unit: write_records(part, records(source))}
                entry = Entry(name, str(source.resolve()), source.stat().st_size, path.stat().st_size, counts)
                folder.add(entry)
            sys.stdout.write(f"{path}: {tally(entry.counts)}\n")
        folder.close()
