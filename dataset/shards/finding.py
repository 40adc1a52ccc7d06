"""Finds the shard files that a config's ``files`` entries name."""

from __future__ import annotations

import functools
import glob
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import BinaryIO, TypeVar

from dataset.config import RemoteConfig
from dataset.records.forms import convert_hint
from dataset.shards.remote.hub import files_of_copy, find_hub
from dataset.shards.remote.server import Server
from dataset.shards.remote.shards import RemoteShard, find_remote
from utils.addresses import is_hub, is_url
from utils.errors import NotRegularError, UserError
from utils.files import check_regular, expanded, open_regular, path_remedy
from utils.inputs import pattern_of

ShardFile = Path | RemoteShard
F = TypeVar("F", Path, RemoteShard)

LINES_SUFFIXES = (".jsonl", ".json")
TAR_SUFFIX = ".tar"
PARQUET_SUFFIX = ".parquet"
_SUFFIXES = (*LINES_SUFFIXES, TAR_SUFFIX, PARQUET_SUFFIX)
COMPANION_SUFFIXES = (PARQUET_SUFFIX, ".csv", ".feather")
"""Suffixes of the tables that img2dataset writes next to each tar."""
_LISTED = "*.jsonl, *.json, *.tar or *.parquet"
_COMPRESSED_TAR = re.compile(r"\.(tar\.\w+|tgz|tbz2?|txz|tzst)$")


def find_shards(entries: Sequence[str], key: str, remote: RemoteConfig | None = None) -> list[ShardFile]:
    """Returns the shard files that ``entries`` name, as one list. :func:`find_by_entry` describes the entries."""
    return [path for paths in find_by_entry(entries, key, remote) for path in paths]


def find_by_entry(entries: Sequence[str], key: str, remote: RemoteConfig | None = None) -> list[list[ShardFile]]:
    """Returns the shard files of each entry.

    An entry is a file, a glob pattern, a folder (its ``*.jsonl``, ``*.json``, ``*.tar`` and ``*.parquet`` files; if it has none,
    see :func:`~dataset.shards.remote.hub.files_of_copy`), a URL (see :func:`~dataset.shards.remote.shards.find_remote`;
    ``remote`` has the settings), or a data set on the Hub (see :func:`~dataset.shards.remote.hub.find_hub`). The order of the
    entries is kept; the files of a pattern or folder are sorted. Files with ``_SUCCESS`` in the name are skipped.

    Raises:
        UserError: if ``entries`` is empty, an entry does not exist or matches nothing, a tar is compressed, or a file is listed
            twice. The message is one line that names the config ``key``.
    """
    if not entries:
        raise UserError(f"{key} is empty", remedy=f"list at least one file, pattern or folder of {_LISTED} shards")
    # One server for all entries, so that they share connections.
    server = Server(remote or RemoteConfig(), key) if any(is_hub(entry) or is_url(entry) for entry in entries) else None
    by_entry = [[path for path in _expand(entry, key, server) if "_SUCCESS" not in path.name] for entry in entries]
    shards = [path for paths in by_entry for path in paths]
    if not shards:
        raise UserError(
            f"{', '.join(entries)} contains no shards besides _SUCCESS files", where=key, remedy="check the path"
        )
    seen: set[str] = set()
    for path, real in zip(shards, real_paths(shards), strict=True):
        if _COMPRESSED_TAR.search(path.name):
            raise UserError(
                f"{path} is a compressed tar, which cannot be read at an offset",
                where=key,
                remedy="unpack it to a plain .tar",
            )
        if isinstance(path, Path) and path.suffix in (".csv", ".tsv"):
            raise UserError(f"{path} is a CSV file, not records", where=key, remedy=convert_hint(path))
        if path.suffix not in _SUFFIXES:
            raise UserError(f"{path} is not a {_LISTED} file", where=key, remedy="rename it or remove it from the list")
        if real in seen:
            raise UserError(f"{path} is listed twice", where=key, remedy="list each file once")
        seen.add(real)
    return by_entry


def open_shard(path: ShardFile, state: tuple[int, int] | None = None) -> BinaryIO:
    """Opens a shard for random access.

    Args:
        path: the shard.
        state: size of the shard, and its modification time or version, when it was indexed. A local shard must still be in this
            state; a remote shard is checked when it is read.

    Raises:
        UserError: if the shard has changed.
    """
    if isinstance(path, RemoteShard):
        return path.open(state)
    file = open_regular(path)
    status = os.fstat(file.fileno())
    if state not in (None, (status.st_size, status.st_mtime_ns)):
        file.close()
        raise UserError(f"{path} was changed during the run, after it was indexed", remedy="start the run again")
    return file


def real_paths(paths: Iterable[ShardFile]) -> list[str]:
    """Resolves symbolic links in paths; URLs are unchanged. Each folder is resolved only once, because it may contain many
    files."""
    folder = functools.cache(os.path.realpath)
    real = []
    for path in paths:
        if isinstance(path, RemoteShard):
            real.append(str(path))
            continue
        joined = os.path.join(folder(path.parent), path.name)
        real.append(os.path.realpath(joined) if os.path.islink(joined) else joined)
    return real


def _expand(entry: str, key: str, server: Server | None) -> Sequence[ShardFile]:
    if server is not None and is_hub(entry):
        return find_hub(entry, server)
    if server is not None and is_url(entry):
        shards = _without_companions(find_remote(entry, server))
        return [shard for shard in shards if shard.suffix in _SUFFIXES] if entry.endswith("/") else shards
    path = expanded(entry)
    if path.is_dir():
        wanted = (n for n in os.listdir(path) if os.path.splitext(n)[1] in _SUFFIXES or _COMPRESSED_TAR.search(n))
        found = _without_companions(path / name for name in sorted(wanted))
        if not found and not (found := files_of_copy(path, key)):
            raise UserError(f"the folder {path} contains no {_LISTED} file", where=key, remedy="check the path")
        return found
    if path.is_file():
        return [path]
    if any(sign in entry for sign in "*?["):
        matches = (Path(match) for match in glob.glob(pattern_of(path), recursive=True) if Path(match).is_file())
        found = sorted(_without_companions(matches))
        if not found:
            raise UserError(f"no file matches {entry}", where=key, remedy="check the pattern")
        return found
    try:
        check_regular(path)
    except NotRegularError as error:
        raise UserError(f"{path} {error.strerror}", where=key, remedy="pass the path of a file") from None
    raise UserError(f"{path} does not exist", where=key, remedy=path_remedy(path))


def _without_companions(paths: Iterable[F]) -> list[F]:
    """Removes files that img2dataset and open_clip write next to shards. A user can still list such a file explicitly."""
    found = list(paths)
    tars = {str(path) for path in found if path.suffix == TAR_SUFFIX}
    return [
        path
        for path in found
        if not path.name.endswith("_stats.json")
        and not (tars and path.name == "sizes.json")
        and not (path.suffix in COMPANION_SUFFIXES and _accompanies_tar(path, tars))
    ]


def _accompanies_tar(path: ShardFile, tars: set[str]) -> bool:
    """Returns True if a tar with the same stem lies next to the file or, for a URL, is among the listed ``tars``."""
    if isinstance(path, Path):
        return path.with_suffix(TAR_SUFFIX).exists()
    return f"{str(path).removesuffix(path.suffix)}{TAR_SUFFIX}" in tars
