"""Digests of the training files that a config names. A resumed run compares them to detect changed files."""

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
"""Number and size of the evenly spaced blocks that are read from each sampled file. Files of up to 4 MB are read completely."""
MAX_PATH_LENGTH = 1000
MAX_FILES = 1_000_000
"""Maximum number of file names that are listed in a folder of images."""


class Hash(Protocol):
    def update(self, data: bytes, /) -> None: ...


def data_identity(data: Config, section: str = "data") -> dict[str, str]:
    """Returns a digest for each key of a config section that names annotation files, shards or image folders.

    A digest covers the names and sizes of all annotation files and shards. Reading entire data sets would take hours, so contents
    are sampled: blocks are read from :data:`SAMPLED_FILES` files per key, or from up to twice as many. Images in a folder are
    sampled in the same way. For each sampled shard, the images named by its first and last records are included. For remote
    files, a digest covers all URLs, and the sizes and versions of a sample of the files. Modification times are ignored, because
    they differ between copies of the data.

    Args:
        data: the section.
        section: name of the section, with which the returned keys begin.
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
    for index, file in enumerate(files):
        if isinstance(file, RemoteShard):
            state = file.state() if index % step == 0 else ""
            total.update(f"{file} {state}\n".encode())
            continue
        if index % step:
            total.update(f"{file.name} {file.stat().st_size}\n".encode("utf-8", "surrogateescape"))
            continue
        for sampled in (file, *_images_named_in(file)):
            _add_file(total, sampled.name, sampled)
    return total.hexdigest()


def _digest_of_folder(folder: Path) -> str:
    """Returns the digest of the number of files in a folder and its subfolders, and of a sample of these files."""
    names: list[str] = []
    for parent, folders, files in os.walk(folder):
        folders.sort()  # os.walk visits the folders in this order
        names += [os.path.join(parent, name) for name in sorted(files)]
        if len(names) > MAX_FILES:
            break
    total = hashlib.sha256(f"{len(names)}\n".encode())
    for name in names[:: max(1, len(names) // SAMPLED_FILES)]:
        with contextlib.suppress(OSError):
            if stat.S_ISREG(os.stat(name).st_mode):
                _add_file(total, os.path.relpath(name, folder), Path(name))
    return total.hexdigest()


def _images_named_in(shard: Path) -> list[Path]:
    """Returns the files that the first and last records of a JSON lines shard name by paths relative to the shard's folder."""
    if shard.suffix not in LINES_SUFFIXES:
        return []
    with shard.open("rb") as opened:
        first = opened.readline(BLOCK_BYTES)
        opened.seek(max(0, shard.stat().st_size - BLOCK_BYTES))
        last = opened.read(BLOCK_BYTES).rstrip(b"\n").rpartition(b"\n")[2]
    images = []
    for line in (first, last):
        record = None
        with contextlib.suppress(ValueError, RecursionError):
            record = json.loads(line)
        for value in record.values() if isinstance(record, dict) else ():
            if isinstance(value, str) and len(value) < MAX_PATH_LENGTH and os.path.isfile(shard.parent / value):
                images.append(shard.parent / value)
    return images


def _add_file(total: Hash, name: str, file: Path) -> None:
    """Adds the name, the size and a sample of the content of a file."""
    size = file.stat().st_size
    total.update(f"{name} {size}\n".encode("utf-8", "surrogateescape"))
    with file.open("rb") as opened:
        for block in range(SAMPLED_BLOCKS):
            opened.seek(max(block * BLOCK_BYTES, (size - BLOCK_BYTES) * block // (SAMPLED_BLOCKS - 1)))
            total.update(opened.read(BLOCK_BYTES))
