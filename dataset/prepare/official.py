"""What the commands share that make records of official files: reading them, plain or packed, with one line where they fail."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dataset.prepare.folders import write_records
from utils.errors import UserError


def read_lines(path: Path) -> list[str]:
    """The lines of a text file, or of ``path`` with ``.gz`` where only that is there; without their ends.

    Raises:
        UserError: there is neither, or it cannot be read.
    """
    packed = path.with_name(path.name + ".gz")
    try:
        if path.is_file():
            text = path.read_text(encoding="utf-8")
        elif packed.is_file():
            text = gzip.decompress(packed.read_bytes()).decode("utf-8")
        else:
            raise UserError(f"{path} is missing, and so is {packed.name}; check the folder of the official files")
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
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing; check the path of the official file") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    if not isinstance(content, dict) or not isinstance(content.get(key), list):
        raise UserError(f"{path} has no list {key!r}; is it the official file?")
    return content


def write_splits(out: Path, splits: Mapping[str, Iterable[Mapping[str, Any]]]) -> str:
    """Write ``out/<split>.jsonl`` for each split, the folder made if missing; what was written, in a line.

    Raises:
        UserError: it cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        counts = {name: write_records(out / f"{name}.jsonl", records) for name, records in splits.items()}
    except OSError as error:
        raise UserError(f"{error.filename or out} cannot be written: {error.strerror or error}") from error
    return f"{out}: {', '.join(f'{count} {name}' for name, count in counts.items())}"
