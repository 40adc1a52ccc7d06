"""Recognises files that do not contain records, so that a message can say what they are and how to convert them."""

from __future__ import annotations

import csv
import re
import shlex
from pathlib import Path

_COCO = re.compile(r'"images"\s*:\s*\[\s*\{|"annotations"\s*:\s*\[\s*\{[^{}]*"image_id"')
_LONGEST_HEADER = 10_000
ARRAY = "one JSON array"


def foreign_form(start: str, *, arrays: bool = False) -> str | None:
    """Describes a file that does not contain JSON lines.

    Args:
        start: the first characters of the file.
        arrays: True if the caller also reads JSON that is not JSON lines; then only CSV files are recognised.

    Returns:
        A description, such as "a CSV file with the columns image, caption", or None if the file may contain records.
    """
    text = start.lstrip("\ufeff \t\r\n")
    if text.startswith("["):
        return None if arrays else ARRAY
    if text.startswith("{"):
        lines = "\n{" in text
        return "a JSON object of lists, as COCO's files are" if _COCO.search(text) and not (arrays or lines) else None
    header, _, rest = text.partition("\n")
    header = header.strip("\r")
    if (
        rest.lstrip().startswith(("{", "["))
        or len(header) > _LONGEST_HEADER
        or not any(sign in header for sign in ",\t;")
    ):
        return None
    columns = next(csv.reader([header], delimiter=delimiter_of(header)), [])
    named = all(re.fullmatch(r"[^\W\d][\w .-]{0,60}", column.strip()) for column in columns)
    return f"a CSV file with the columns {', '.join(columns)[:200]}" if named and len(columns) > 1 else None


def delimiter_of(header: str) -> str:
    """Returns the delimiter of a CSV file: comma, tab or semicolon, whichever is most frequent in the header."""
    return max(",\t;", key=header.count)


def convert_hint(path: object) -> str:
    """Returns the remedy for a file that does not contain records: the command that converts it."""
    if not isinstance(path, str | Path):
        return "convert it to JSON lines (docs/records.md)"
    out = Path(path).with_name(f"{Path(path).stem}_records.jsonl")
    command = f"python run.py prepare own {shlex.quote(str(path))} --out {shlex.quote(str(out))}"
    return f"convert it: {command} (its --help names the columns)"
