"""Writes, reads and checks the manifest of a prepared folder: sources and shards with hashes, counts, command and version."""

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
from dataset.prepare.output_folder import json_line, read_facts
from dataset.prepare.raw_folder import file_digest
from utils.cores import usable_cores
from utils.errors import UserError
from utils.files import replacing
from utils.version import VERSION

MANIFEST = "_prepare/manifest.json"
"""Path of the manifest in a folder of records. A JSON file next to the shards would be read as a shard."""

_NAMES_SINCE = {"shards": "files", "notes": "other_files", "made": "written_at"}
"""Names of this version, by the names in manifests of earlier versions."""

SUFFIXES = (".jsonl", ".json", ".tar", ".tsv", ".parquet")
"""Suffixes of the files that count as shards."""


@dataclass(frozen=True)
class Manifest:
    """A manifest: its ``folder`` and its JSON ``values``."""

    folder: Path
    values: Mapping[str, Any]

    @property
    def counts(self) -> Counts:
        return Counts.from_values(self.values["counts"])


def write_manifest(
    folder: Path,
    arguments: Mapping[str, Any],
    counts: Counts,
    facts: Mapping[str, Any] | None = None,
    *,
    hashed: bool = True,
) -> Manifest:
    """Writes the manifest of the shards in ``folder``. If ``hashed`` is False, the manifest contains the sizes of the shards, but
    not their hashes."""
    values = {
        "version": VERSION,
        "command": sys.argv[1:],
        "written_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "arguments": dict(arguments),
        "counts": counts.to_values(),
        **(facts or {}),
        "files": _described(folder, _shards(folder), hashed=hashed),
        "other_files": _described(folder, _other_files(folder)),
    }
    path = folder / MANIFEST
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part:
        part.write_bytes(manifest_content(values))
    return Manifest(folder, values)


def read_manifest(folder: Path) -> Manifest:
    """Reads the manifest of a folder.

    Raises:
        UserError: the manifest does not exist, or was changed.
    """
    path = folder / MANIFEST
    if not path.exists():
        raise UserError(f"{folder} has no {MANIFEST}: `run.py prepare` did not build the folder, or did not finish it")
    values = read_facts(path)
    values.pop("own_sha256", None)
    if path.read_bytes() != manifest_content(values):
        raise UserError(f"{path} was changed after it was written", remedy="prepare the folder again")
    return Manifest(folder, {_NAMES_SINCE.get(name, name): value for name, value in values.items()})


def is_prepared(folder: Path) -> bool:
    """Returns True if the folder has a manifest, and False if the folder is empty or does not exist.

    Raises:
        UserError: the folder has files, but no manifest.
    """
    if (folder / MANIFEST).exists():
        return True
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} contains files that `run.py prepare` did not write", remedy="use another --out")
    return False


def check_same(folder: Path, arguments: Mapping[str, Any]) -> None:
    """Raises :class:`UserError` unless the folder was built with these arguments."""
    made_with = read_manifest(folder).values["arguments"]
    different = [key for key in {**made_with, **arguments} if made_with.get(key) != arguments.get(key)]
    if different:
        raise UserError(
            f"{folder} was built from other files or with other flags ({', '.join(different)})",
            remedy="--overwrite rebuilds it",
        )


def prepared_folders(root: Path) -> list[Path]:
    """Returns the folders with a manifest below ``root``, including ``root`` itself."""
    return sorted(path.parent.parent for path in root.rglob(MANIFEST) if not path.parent.parent.name.startswith("."))


def faults(folder: Path) -> Iterator[str]:
    """Yields a line for each fault in a prepared folder: shards that are missing, changed, or not in the manifest."""
    try:
        values = read_manifest(folder).values
    except UserError as error:
        yield str(error)
        return
    shards = {each["file"]: each for each in values["files"]}
    for name, shard in {**shards, **{each["file"]: each for each in values["other_files"]}}.items():
        path = folder / name
        if not path.is_file():
            yield f"{path} is missing"
        elif path.stat().st_size != shard["bytes"]:
            yield f"{path} has {path.stat().st_size:,} bytes, not {shard['bytes']:,}"
        elif shard["sha256"] is not None and file_digest(path) != shard["sha256"]:
            yield f"{path} has the right size, but different content (SHA-256)"
    for path in _shards(folder):
        if path.name not in shards:
            yield f"{path} is not in the manifest, but would be read as a shard"


def _shards(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES and path.is_file())


def _other_files(folder: Path) -> list[Path]:
    """Returns the other files in the folder of the manifest."""
    return sorted(path for path in (folder / MANIFEST).parent.glob("*") if path != folder / MANIFEST and path.is_file())


def _described(folder: Path, paths: list[Path], *, hashed: bool = True) -> list[dict[str, Any]]:
    """Returns the path, the size in bytes and the hash of each file. The hash is null if ``hashed`` is False."""
    with ThreadPoolExecutor(usable_cores()) as pool:  # hashing releases the interpreter lock
        digests = list(pool.map(file_digest, paths)) if hashed else [None] * len(paths)
    return [
        {"file": path.relative_to(folder).as_posix(), "bytes": path.stat().st_size, "sha256": digest}
        for path, digest in zip(paths, digests, strict=True)
    ]


def manifest_content(values: Mapping[str, Any]) -> bytes:
    """Returns the content of the manifest file: ``values``, and their hash, which reveals later changes."""
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
    return json_line({**values, "own_sha256": digest}, indent=2)
