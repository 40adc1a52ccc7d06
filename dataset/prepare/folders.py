"""Splits, lines of records and texts of counts, for all commands that make folders of records."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

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


def tally(counts: Mapping[str, int]) -> str:
    """Formats counts such as "382 train, 48 val"; returns "nothing" for empty counts."""
    return ", ".join(f"{number} {kind}" for kind, number in counts.items()) or "nothing"
