"""The manifest of a prepared folder: sources and shards with hashes, counts by reason, command and version; and its check."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dataset.prepare.counts import Counts
from dataset.prepare.output import read_facts
from dataset.prepare.raw_folder import file_digest
from utils.cores import usable_cores
from utils.errors import UserError
from utils.files import write_text
from utils.version import VERSION

MANIFEST = "_prepare/manifest.json"
"""Path of the manifest in a folder of records; a folder of its own, since ``*.json`` beside the shards would be read as one."""

SUFFIXES = (".jsonl", ".json", ".tar", ".tsv")
"""Suffixes of the files that a manifest accounts for."""


@dataclass(frozen=True)
class Manifest:
    """A manifest: ``values`` as JSON, and the path of the folder."""

    folder: Path
    values: Mapping[str, Any]

    @property
    def counts(self) -> Counts:
        return Counts.from_values(self.values["counts"])


def write_manifest(
    folder: Path, arguments: Mapping[str, Any], counts: Counts, facts: Mapping[str, Any] | None = None
) -> Manifest:
    """Write the manifest of the shards that lie in ``folder``."""
    paths = _shards(folder)
    with ThreadPoolExecutor(usable_cores()) as pool:  # hashing leaves the interpreter free
        digests = list(pool.map(file_digest, paths))
    shards = [
        {"file": path.name, "bytes": path.stat().st_size, "sha256": digest}
        for path, digest in zip(paths, digests, strict=True)
    ]
    values = {
        "version": VERSION,
        "command": sys.argv[1:],
        "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "arguments": dict(arguments),
        "counts": counts.to_values(),
        **(facts or {}),
        "shards": shards,
    }
    path = folder / MANIFEST
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps({**values, "own_sha256": _own_digest(values)}, indent=2, ensure_ascii=False) + "\n")
    return Manifest(folder, values)


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a folder.

    Raises:
        UserError: there is none, or it is damaged.
    """
    path = folder / MANIFEST
    if not path.exists():
        raise UserError(f"{folder} has no {MANIFEST}: `run.py prepare` did not make it, or not to its end")
    values = read_facts(path)
    if values.pop("own_sha256", None) != _own_digest(values):
        raise UserError(f"{path} was changed after it was written; prepare the folder again")
    return Manifest(folder, values)


def check_same(folder: Path, arguments: Mapping[str, Any]) -> None:
    """Raise :class:`UserError` unless the folder was made with these arguments."""
    if not (folder / MANIFEST).exists():
        raise UserError(f"{folder} holds files that `run.py prepare` did not make; give another --out")
    made_with = read_manifest(folder).values["arguments"]
    different = [key for key in {**made_with, **arguments} if made_with.get(key) != arguments.get(key)]
    if different:
        raise UserError(
            f"{folder} was made from other files or with other flags ({', '.join(different)}); --overwrite makes it anew"
        )


def prepared_folders(root: Path) -> list[Path]:
    """The folders with a manifest in ``root``, itself among them."""
    return sorted(path.parent.parent for path in root.rglob(MANIFEST) if not path.parent.parent.name.startswith("."))


def faults(folder: Path) -> Iterator[str]:
    """What is wrong with a prepared folder: shards that are missing, changed or strange, each in a line."""
    try:
        shards = {shard["file"]: shard for shard in read_manifest(folder).values["shards"]}
    except UserError as error:
        yield str(error)
        return
    for name, shard in shards.items():
        path = folder / name
        if not path.is_file():
            yield f"{path} is missing"
        elif path.stat().st_size != shard["bytes"]:
            yield f"{path} has {path.stat().st_size:,} bytes, not {shard['bytes']:,}"
        elif file_digest(path) != shard["sha256"]:
            yield f"{path} has the right size, but another content (SHA-256)"
    for path in _shards(folder):
        if path.name not in shards:
            yield f"{path} is not in the manifest, but would be read as a shard"


def _shards(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES and path.is_file())


def _own_digest(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(
        json.dumps(values, sort_keys=True, ensure_ascii=False).encode("utf-8", "backslashreplace")
    ).hexdigest()
