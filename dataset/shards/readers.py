"""Shards on disk as one long list of records: any record by its number, without reading what lies before it.

A shard is a file of JSON lines, or an uncompressed WebDataset-style tar (``a/000012.jpg`` beside ``a/000012.txt`` and/or
``a/000012.json``). Each is indexed once: the byte offset of every record, as int64. Indexes are cached on disk and mapped into
memory, so that many processes share one copy.
"""

from __future__ import annotations

import bisect
import functools
import glob
import hashlib
import json
import logging
import os
import re
import sys
import tarfile
import tempfile
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from dataset.files import RECORD_BYTES, check_bytes
from dataset.records.schema import RawRecord
from dataset.shards.tars import parse_object, place_of, read_group, scan_tar
from utils.errors import UserError
from utils.files import expanded

logger = logging.getLogger(__name__)

LINES_SUFFIXES = (".jsonl", ".json")
TAR_SUFFIX = ".tar"
COMPANION_SUFFIXES = (".parquet", ".csv", ".feather")
"""Of the tables that img2dataset writes beside each tar."""
_COMPRESSED_TAR = re.compile(r"\.(tar\.\w+|tgz|tbz2?|txz|tzst)$")
_COMPRESSED_STARTS = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")
_SCAN_BYTES = 1 << 24
_OPEN_FILES = 64
_FIRST_LINE = 1 << 20
_INDEX_VERSION = 1
_HEADER = 5


def find_shards(entries: Sequence[str], key: str) -> list[Path]:
    """The shard files that ``entries`` name: files, glob patterns, or folders (their ``*.jsonl``, ``*.json`` and ``*.tar``).

    The order is that of the entries, sorted inside a pattern or folder. Files with ``_SUCCESS`` in the name are skipped.

    Raises:
        UserError: in one line with the config ``key``: no entries, nothing there, no match, a compressed tar, a file twice.
    """
    if not entries:
        raise UserError(f"{key} is empty; list at least one file, pattern or folder of *.jsonl, *.json or *.tar shards")
    shards: list[Path] = []
    for entry in entries:
        shards.extend(path for path in _expand(entry, key) if "_SUCCESS" not in path.name)
    if not shards:
        raise UserError(f"{key}: {', '.join(entries)} holds no shards besides _SUCCESS files; check the path")
    seen: set[Path] = set()
    for path in shards:
        if _COMPRESSED_TAR.search(path.name):
            raise UserError(
                f"{key}: {path} is a compressed tar, which cannot be read at an offset; unpack it to a plain .tar"
            )
        if path.suffix not in (*LINES_SUFFIXES, TAR_SUFFIX):
            raise UserError(f"{key}: {path} is neither *.jsonl, *.json nor *.tar; rename it or take it off the list")
        if path.resolve() in seen:
            raise UserError(f"{key}: {path} is named twice; list each file once")
        seen.add(path.resolve())
    return shards


def _expand(entry: str, key: str) -> list[Path]:
    path = expanded(entry)
    if path.is_dir():
        known = (*LINES_SUFFIXES, TAR_SUFFIX)
        found = _without_companions(p for p in path.iterdir() if p.suffix in known or _COMPRESSED_TAR.search(p.name))
        if not found:
            raise UserError(f"{key}: the folder {path} holds no *.jsonl, *.json or *.tar file; check the path")
        return sorted(found)
    if path.is_file():
        return [path]
    if any(sign in entry for sign in "*?["):
        matches = (Path(match) for match in glob.glob(str(path), recursive=True) if Path(match).is_file())
        found = sorted(_without_companions(matches))
        if not found:
            raise UserError(f"{key}: no file matches {entry}; check the pattern")
        return found
    raise UserError(f"{key}: {path} does not exist; check the path (it is relative to {Path.cwd()})")


def _without_companions(paths: Iterable[Path]) -> list[Path]:
    """The paths without what img2dataset and open_clip write beside shards; named by themselves they would be taken."""
    found = list(paths)
    tars = {path.with_suffix("") for path in found if path.suffix == TAR_SUFFIX}
    return [
        path
        for path in found
        if not path.name.endswith("_stats.json")
        and not (tars and path.name == "sizes.json")
        and not (path.suffix in COMPANION_SUFFIXES and path.with_suffix("") in tars)
    ]


def default_index_folder() -> Path | None:
    """Where indexes are cached unless the config names a folder: the user's cache folder of the platform; None without one."""
    home = expanded("~")
    variable = {"darwin": "", "win32": "LOCALAPPDATA"}.get(sys.platform, "XDG_CACHE_HOME")
    named = os.environ.get(variable)
    if not named and not home.is_absolute():
        return None
    caches = home / "Library" / "Caches" if sys.platform == "darwin" else home / ".cache"
    return Path(named or caches) / "x2vlm" / "index"


@functools.cache
def _warn_not_cached(folder: Path | None, reason: str) -> None:
    """Warn once, not for each shard."""
    where = f"in {folder} ({reason})" if folder else f"({reason})"
    logger.warning(
        "indexes of shards are not cached %s; they stay in memory; data.cache_index names another folder", where
    )


class Shards:
    """All records of a list of shard files, numbered from 0 in the order of the files.

    Safe after a fork (every process opens its own files) and to pickle (indexes are mapped again from their cache).

    Args:
        files: entries as for :func:`find_shards`.
        key: config key of ``files``, for messages.
        index_folder: where indexes are cached; None = :func:`default_index_folder`.

    Raises:
        UserError: as :func:`find_shards`, and for zero records or an unreadable shard.
    """

    def __init__(self, files: Sequence[str], *, key: str = "files", index_folder: str | Path | None = None):
        self.key = key
        self.paths = find_shards(files, key)
        folder = expanded(index_folder) if index_folder is not None else default_index_folder()
        self._indexes = [ShardIndex(path, folder, key) for path in self.paths]
        self.sizes = [len(index) for index in self._indexes]
        self._ends = np.cumsum(self.sizes, dtype=np.int64).tolist()
        self._files = _OpenFiles()
        if not len(self):
            raise UserError(f"{key}: {', '.join(files)} holds no records; every shard is empty")

    def __len__(self) -> int:
        return self._ends[-1]

    @property
    def starts(self) -> list[int]:
        """The number of the first record of each shard that has any."""
        return [end - size for size, end in zip(self.sizes, self._ends, strict=True) if size]

    def place(self, number: int) -> str:
        """Where record ``number`` lies, for messages: as in the record, or for a tar that cannot be read its number there."""
        path, index, row = self._locate(number)
        if path.suffix != TAR_SUFFIX:
            return f"{path}:{index.line(row)}"
        try:
            file, offsets = self._files.open(path), index.rows[row].tolist()
            return place_of(file, path, offsets)
        except (OSError, tarfile.TarError, ValueError):
            return f"{path}: record {row}"

    def _locate(self, number: int) -> tuple[Path, ShardIndex, int]:
        """The shard of a record, its index, and the record's number in it."""
        if not 0 <= number < len(self):
            raise IndexError(f"record {number} is not in 0 … {len(self) - 1}")
        shard = bisect.bisect_right(self._ends, number)
        return self.paths[shard], self._indexes[shard], number - (self._ends[shard] - self.sizes[shard])

    def read(self, number: int) -> RawRecord:
        """Record ``number``, with ``place`` as ``file:line`` or ``shard.tar:member``.

        Raises:
            BrokenRecordError: "bad json" or "wrong type".
            UserError: where the shard itself can no longer be read.
        """
        path, index, row = self._locate(number)
        try:
            file = self._files.open(path)
            if path.suffix == TAR_SUFFIX:
                return read_group(file, path, index.rows[row].tolist())
            return _read_line(file, path, index.span(row), index.line(row))
        except (OSError, tarfile.TarError) as error:
            raise UserError(
                f"{path}: cannot be read any more ({error}); was it moved or changed during the run?"
            ) from None


class ShardIndex:
    """Where each record of one shard starts.

    ``rows`` (n, 1) int64: the offset of each line that is not blank; for a tar (n, 4): the offsets of the headers of the
    image, the ``.txt``, the ``.json`` and the first member of each group, -1 where there is none. After the rows come, of
    lines, how many records lie before each blank one; of a tar, a number where its end blocks are missing.
    """

    def __init__(self, path: Path, folder: Path | None, key: str):
        self.path = path
        try:
            status = path.stat()
            self._identity = (_INDEX_VERSION, status.st_size, status.st_mtime_ns)
            name = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:32]
            self.cache = None if folder is None else folder / f"{name}.npy"
            self._flat = self._load()
            if self._flat is None:
                self._flat = self._build(key)
                self._save()
            if path.suffix == TAR_SUFFIX and len(self._flat) > _HEADER + self._flat[3] * self._flat[4]:
                logger.warning(
                    "%s: %s lacks the end of a tar; %d records were found: is it whole?", key, path, len(self)
                )
        except OSError as error:
            raise UserError(f"{key}: {path}: {error.strerror or error}; check the file and its permissions") from None

    def __len__(self) -> int:
        return int(self.flat[3])

    @property
    def flat(self) -> np.ndarray:
        if self._flat is None:
            self._flat = self._load()
            if self._flat is None:
                raise UserError(
                    f"{self.path}: its cached index {self.cache} is gone or out of date; start the run again"
                )
        return self._flat

    @property
    def rows(self) -> np.ndarray:
        count, columns = int(self.flat[3]), int(self.flat[4])
        return self.flat[_HEADER : _HEADER + count * columns].reshape(count, columns)

    def span(self, row: int) -> tuple[int, int]:
        """The first byte of record ``row`` of a JSON-lines shard and its length, up to the next record."""
        start = int(self.rows[row, 0])
        end = int(self.rows[row + 1, 0]) if row + 1 < len(self) else self._identity[1]
        return start, end - start

    def line(self, row: int) -> int:
        """The number of the line, from 1, that holds record ``row`` of a JSON-lines shard."""
        before_blank = self.flat[_HEADER + len(self) :]
        return row + 1 + int(np.searchsorted(before_blank, row, side="right"))

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        if isinstance(self._flat, np.memmap):
            state["_flat"] = None
        return state

    def _load(self) -> np.ndarray | None:
        """The cached index, or None where there is none, or it is broken or belongs to an older state of the shard."""
        if self.cache is None:
            return None
        try:
            flat = np.load(self.cache, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return None
        if (
            flat.ndim != 1
            or flat.dtype != np.int64
            or len(flat) < _HEADER
            or tuple(flat[:3].tolist()) != self._identity
        ):
            return None
        count, columns = int(flat[3]), int(flat[4])
        return flat if 0 <= count * columns <= len(flat) - _HEADER else None

    def _build(self, key: str) -> np.ndarray:
        with self.path.open("rb") as file:
            start = file.read(8)
        if start.startswith(_COMPRESSED_STARTS):
            raise UserError(f"{key}: {self.path} is compressed and cannot be read at an offset; decompress it first")
        if self.path.suffix == TAR_SUFFIX:
            rows, ends = scan_tar(self.path, key)
            extra = np.empty(0, np.int64) if ends else np.ones(1, np.int64)
        elif start.lstrip()[:1] == b"[" and _is_one_array(self.path):
            raise UserError(f"{key}: {self.path} is one JSON array; a shard has one JSON object on each line")
        else:
            rows, extra = _scan_lines(self.path)
        return np.concatenate([np.array([*self._identity, *rows.shape], np.int64), rows.reshape(-1), extra])

    def _save(self) -> None:
        """Write the cache in one step, so that no reader sees half of it, and map it; go on without where that fails."""
        assert self._flat is not None
        if self.cache is None:
            _warn_not_cached(None, "the user has no home folder")
            return
        try:
            self.cache.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self.cache.parent, suffix=".tmp", delete=False) as file:
                try:
                    np.save(file, self._flat)
                    file.flush()
                    os.replace(file.name, self.cache)
                except OSError:
                    Path(file.name).unlink()
                    raise
        except OSError as error:
            _warn_not_cached(self.cache.parent, error.strerror or str(error))
            return
        mapped = self._load()
        if mapped is not None:
            self._flat = mapped


class _OpenFiles:
    """The most recently used files of this process; another process, forked or spawned, starts with none."""

    def __init__(self) -> None:
        self._process = os.getpid()
        self._files: OrderedDict[Path, BinaryIO] = OrderedDict()

    def open(self, path: Path) -> BinaryIO:
        if self._process != os.getpid():
            # Positions of files opened before a fork are shared with the parent: never use them.
            self.__init__()  # type: ignore[misc]
        if path not in self._files:
            self._files[path] = path.open("rb")
            if len(self._files) > _OPEN_FILES:
                self._files.popitem(last=False)[1].close()
        self._files.move_to_end(path)
        return self._files[path]

    def __getstate__(self) -> dict[str, Any]:
        return {"_process": -1, "_files": OrderedDict()}


def _is_one_array(path: Path) -> bool:
    """Whether a file that begins with a list is one, and not lines of which the first is a list: a broken record."""
    with path.open("rb") as file:
        line = file.readline(_FIRST_LINE)
        try:
            json.loads(line)
        except (ValueError, RecursionError):
            return True
        return not file.readline().strip()


def _scan_lines(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Offsets (n, 1) of the lines that are not blank, and for each blank line how many records come before it."""
    size = path.stat().st_size
    if size == 0:
        return np.empty((0, 1), np.int64), np.empty(0, np.int64)
    data = np.memmap(path, np.uint8, mode="r")
    parts = [np.zeros(1, np.int64)]
    for begin in range(0, size, _SCAN_BYTES):
        parts.append(np.flatnonzero(data[begin : begin + _SCAN_BYTES] == ord("\n")) + (begin + 1))
    starts = np.concatenate(parts)
    if starts[-1] == size:
        starts = starts[:-1]
    # Only a line that starts with white space can be blank: look at few lines, not at all.
    suspects = np.flatnonzero(np.isin(data[starts], np.frombuffer(b" \t\r\n", np.uint8)))
    ends = np.append(starts[1:], size)
    blank = [i for i in suspects.tolist() if not data[starts[i] : ends[i]].tobytes().strip()]
    before_blank = np.array(blank, np.int64) - np.arange(len(blank))
    return np.delete(starts, blank).reshape(-1, 1), before_blank


def _read_line(file: BinaryIO, path: Path, span: tuple[int, int], line: int) -> RawRecord:
    file.seek(span[0])
    place = f"{path}:{line}"
    check_bytes(span[1], RECORD_BYTES, place, "the line", "json")
    return RawRecord(parse_object(file.read(span[1]), place), place, path.parent)
