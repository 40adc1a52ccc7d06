"""Digests of the files that a config names for training, so that a resumed run knows whether they have changed."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence

from dataset.shards.finding import ShardFile, find_shards
from dataset.shards.remote.shards import RemoteShard
from utils.config import Config
from utils.files import expanded
from utils.inputs import inputs_of

SAMPLED_FILES = 64
SAMPLED_BYTES = 1 << 16
"""At the start and at the end of a file."""


def data_identity(data: Config, section: str = "data") -> dict[str, str]:
    """A digest for each key of the section ``data``, or another one, that names annotation files or shards.

    It covers names and sizes of all files, and the first and last bytes of :data:`SAMPLED_FILES` of each key, or up to twice as
    many: reading whole data sets would take hours. Of remote files, it covers all addresses, and sizes and versions of as many
    files. Folders of images are not looked into.
    """
    named: dict[str, list[ShardFile]] = defaultdict(list)
    for key, kind, path in inputs_of(data, f"{section}."):
        if kind == "file":
            named[key].append(expanded(path))
        elif kind == "shards":
            named[key] += find_shards([path], key, getattr(data, "remote", None))
    return {key: _digest(files) for key, files in named.items()}


def _digest(files: Sequence[ShardFile]) -> str:
    total = hashlib.sha256()
    step = max(1, len(files) // SAMPLED_FILES)
    for number, file in enumerate(files):
        if isinstance(file, RemoteShard):
            state = file.state() if number % step == 0 else ""
            total.update(f"{file} {state}\n".encode())
            continue
        size = file.stat().st_size
        total.update(f"{file.name} {size}\n".encode("utf-8", "surrogateescape"))
        if number % step == 0:
            with file.open("rb") as opened:
                total.update(opened.read(SAMPLED_BYTES))
                opened.seek(max(0, size - SAMPLED_BYTES))
                total.update(opened.read(SAMPLED_BYTES))
    return total.hexdigest()
