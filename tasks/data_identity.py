"""Digests of the files that a config names for training, so that a resumed run knows whether they have changed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from dataset.shards.finding import LINES_SUFFIXES, ShardFile, find_shards
from dataset.shards.remote.shards import RemoteShard
from utils.config import Config
from utils.files import expanded
from utils.inputs import inputs_of

SAMPLED_FILES = 64
SAMPLED_BLOCKS = 64
BLOCK_BYTES = 1 << 16
"""Blocks that are read of each sampled file, spread evenly over it. Files of up to 4 MB are read whole."""
LONGEST_PATH = 1000
NAMES = 1_000_000
"""Names of files after which the listing of a folder of images stops."""


class Hash(Protocol):
    def update(self, data: bytes, /) -> None: ...


def data_identity(data: Config, section: str = "data") -> dict[str, str]:
    """A digest for each key of the section ``data``, or another one, that names annotation files, shards or folders of images.

    It covers names and sizes of all annotation files and shards, and blocks of :data:`SAMPLED_FILES` of each key, or up to twice
    as many: reading whole data sets would take hours. Images in a folder, and images that are named by the first and the last
    record of a sampled shard, are sampled in the same way. Of remote files, it covers all addresses, and sizes and versions of as
    many files. Modification times are ignored, since a copy of the data has others.
    """
    named: dict[str, list[ShardFile]] = defaultdict(list)
    digests: dict[str, str] = {}
    for key, kind, path in inputs_of(data, f"{section}."):
        if kind == "file":
            named[key].append(expanded(path))
        elif kind == "folder":
            digests[key] = _digest_of_folder(expanded(path))
        elif kind == "shards":
            named[key] += find_shards([path], key, getattr(data, "remote", None))
    return digests | {key: _digest(files) for key, files in named.items()}


def _digest(files: Sequence[ShardFile]) -> str:
    total = hashlib.sha256()
    step = max(1, len(files) // SAMPLED_FILES)
    for number, file in enumerate(files):
        if isinstance(file, RemoteShard):
            state = file.state() if number % step == 0 else ""
            total.update(f"{file} {state}\n".encode())
            continue
        _add_name(total, file.name, file.stat().st_size)
        if number % step == 0:
            _add_content(total, file)
            for image in _images_beside(file):
                _add_name(total, image.name, image.stat().st_size)
                _add_content(total, image)
    return total.hexdigest()


def _digest_of_folder(folder: Path) -> str:
    """The digest of a sample of the files in and below a folder, and of the number of files."""
    names: list[str] = []
    for here, folders, files in os.walk(folder):
        folders.sort()  # os.walk visits them in this order
        names += [os.path.join(here, name) for name in sorted(files)]
        if len(names) > NAMES:
            break
    total = hashlib.sha256(f"{len(names)}\n".encode())
    for name in names[:: max(1, len(names) // SAMPLED_FILES)]:
        with contextlib.suppress(OSError):
            if stat.S_ISREG((state := os.stat(name)).st_mode):
                _add_name(total, os.path.relpath(name, folder), state.st_size)
                _add_content(total, Path(name))
    return total.hexdigest()


def _images_beside(shard: Path) -> list[Path]:
    """The files that the first and the last record of a shard of JSON lines name by a path, relative to the shard's folder."""
    if shard.suffix not in LINES_SUFFIXES:
        return []
    with shard.open("rb") as opened:
        first = opened.readline(BLOCK_BYTES)
        opened.seek(max(0, shard.stat().st_size - BLOCK_BYTES))
        last = opened.read(BLOCK_BYTES).rstrip(b"\n").rpartition(b"\n")[2]
    found = []
    for line in (first, last):
        with contextlib.suppress(ValueError, RecursionError):
            record = json.loads(line)
            values = record.values() if isinstance(record, dict) else ()
            paths = [shard.parent / value for value in values if isinstance(value, str) and len(value) < LONGEST_PATH]
            found += [path for path in paths if _is_file(path)]
    return found


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # longer than a path may be, or with a NUL
        return False


def _add_name(total: Hash, name: str, size: int) -> None:
    total.update(f"{name} {size}\n".encode("utf-8", "surrogateescape"))


def _add_content(total: Hash, file: Path) -> None:
    size = file.stat().st_size
    with file.open("rb") as opened:
        for block in range(SAMPLED_BLOCKS):
            opened.seek(max(block * BLOCK_BYTES, (size - BLOCK_BYTES) * block // (SAMPLED_BLOCKS - 1)))
            total.update(opened.read(BLOCK_BYTES))
