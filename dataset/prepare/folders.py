"""Helpers for commands that make folders of records: splitting, writing records, and reporting the result."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from dataset.prepare.output import read_facts

SPLITS = ("train", "val", "test")


def split_by_hash(key: str) -> str:
    """Returns the split of a key, which does not depend on a seed: "train" for 80% of keys, "val" for 10%, "test" for 10%."""
    bucket = int.from_bytes(hashlib.blake2b(key.encode("utf-8"), digest_size=8).digest(), "big") % 100
    return "train" if bucket < 80 else "val" if bucket < 90 else "test"


def write_records(path: Path, records: Iterable[Mapping[str, Any]]) -> int:
    """Writes records as JSON lines in UTF-8; returns their number."""
    count = 0
    with path.open("w", encoding="utf-8", errors="backslashreplace", newline="\n") as stream:
        for record in records:
            stream.write(json.dumps(record, ensure_ascii=False) + "\n")
            count += 1
    return count


def fill_and_report(
    out: Path, facts_name: str, fill: Callable[[], object], line: Callable[[dict[str, Any]], str]
) -> int:
    """Fills the folder ``out`` and prints a line about the result.

    Args:
        out: the folder.
        facts_name: path of the manifest below ``out``.
        fill: function that fills the folder, unless it is complete.
        line: function that formats the content of the manifest as one line.

    Returns:
        The exit status, 0.
    """
    facts_path = out / facts_name
    before = facts_path.stat().st_mtime_ns if facts_path.exists() else None
    fill()
    if before is not None and facts_path.stat().st_mtime_ns == before:
        sys.stdout.write(f"{out} is already complete with these arguments; nothing to do\n")
    else:
        sys.stdout.write(f"{out}: {line(read_facts(facts_path))}\n")
    return 0


def tally(counts: Mapping[str, int]) -> str:
    """Formats counts such as "382 train, 48 val"; returns "nothing" for empty counts."""
    return ", ".join(f"{number} {kind}" for kind, number in counts.items()) or "nothing"
