"""Opens the index of a list of shards, and builds it if it is missing or out of date.

The index of a list is assembled from the entries of its shards (:mod:`dataset.shards.entries`). Shards without a current entry
are scanned first. The first process that needs the index builds it, and the others wait. A build that is interrupted continues
with the entries that it has written.
"""

from __future__ import annotations

import fcntl
import functools
import logging
import os
import shutil
import socket
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dataset.shards.entries import (
    NEXT_TO_SHARDS,
    STORE,
    State,
    entry_file,
    read_offsets,
    read_row,
    row_of,
    write_entry,
)
from dataset.shards.finding import ShardFile, find_shards, real_paths
from dataset.shards.index import MODIFIED, RECORDS, ShardsIndex, load, name_of, write_index
from dataset.shards.remote.shards import RemoteShard
from dataset.shards.scanning import scan_shard
from utils.errors import UserError
from utils.processes import die_with_parent
from utils.progress import progress_bar

_SHARDS_IN_MEMORY, _BYTES_IN_MEMORY = 1_000, 20_000_000_000
"""Maximum number of shards, and of bytes in them, for which every process may build its own index in memory if no index can be
written. Reading that much takes a few minutes."""
_STALE_S = 86_400.0
"""Age at which an unfinished index is assumed to be left over from a killed process."""
_WAIT_S = 0.5
_CONCURRENT_REQUESTS = 16
_MAX_NAMED = 3

logger = logging.getLogger(__name__)


def open_index(
    paths: Sequence[ShardFile], folder: Path | None, key: str, workers: int = 1, ask_servers: bool = False
) -> ShardsIndex:
    """Opens the index of some shards. The index is built if it is missing, and rebuilt if shards have changed.

    Args:
        paths: the shards.
        folder: folder of all indexes. Without one, or if it is not writable, the index of a small list is kept in memory.
        key: config key of the shards, to name in error messages.
        workers: number of processes that scan shards.
        ask_servers: whether to ask servers if remote shards have changed.

    Raises:
        UserError: if a shard cannot be read, or if the list is too large for memory and its index cannot be written.
    """
    if folder is None:
        return _index_in_memory(paths, None, "the user has no home folder", key)
    own = folder / f"{name_of(paths)}.index"
    try:
        found = _current(own, paths, key, ask_servers)
        if found is None:
            folder.mkdir(parents=True, exist_ok=True)
            with _build_lock(own.with_suffix(".lock"), key):
                found = _current(own, paths, key, ask_servers)
                if found is None:
                    build_index(own, paths, key, workers)
                    found = load(own, paths)
        if found is not None:
            return found
        raise OSError("the index is missing after it was written")
    except OSError as error:
        # On file systems without locks, another process may have finished the index.
        found = _current(own, paths, key, ask_servers)
        return found or _index_in_memory(paths, folder, error.strerror or str(error), key)


def build_index(own: Path, paths: Sequence[ShardFile], key: str, workers: int) -> None:
    """Builds the index of some shards from their entries, and scans the shards that have no current entry.

    Args:
        own: folder of the index, in the folder of all indexes, which also contains the entries.
        paths: S shards.
        key: config key of the shards, to name in error messages.
        workers: number of processes that scan shards.
    """
    if own.exists() and load(own, paths) is None:
        logger.warning("%s: the index %s is damaged or was written by an earlier version; rebuilding it", key, own)
    started, jobs = time.monotonic(), _jobs(paths, own.parent / STORE, key)
    scanned = _scan_missing(jobs, workers)
    records = _assemble(own, jobs)
    logger.info(
        "%s: indexed %s records in %s shards in %.1f s (%s had to be scanned)",
        key,
        f"{records:,}",
        f"{len(jobs):,}",
        time.monotonic() - started,
        f"{scanned:,}",
    )


def write_entries(folder: Path, workers: int) -> None:
    """Scans the shards in a folder, and writes their entries next to them, so that runs do not have to scan them.

    Raises:
        UserError: if a shard cannot be read.
    """
    key = str(folder)
    _scan_missing(_jobs(find_shards([key], key), None, key), workers)


class _Job(NamedTuple):
    """A shard to index: the files in which its entry may be, of which the first is written if none has it; the shard and its
    current state; and the config key of the shards."""

    files: list[Path]
    path: ShardFile
    state: State
    key: str

    def entry(self) -> tuple[Path, np.ndarray] | None:
        """Returns the file and the row of the shard's entry, or None if no file has an entry for its current state."""
        for file in self.files:
            if (row := read_row(file)) is not None and tuple(row[: MODIFIED + 1].tolist()) == self.state:
                return file, row
        return None


def _jobs(paths: Sequence[ShardFile], store: Path | None, key: str) -> list[_Job]:
    """Returns the jobs of some shards. Their entries may be next to the shards and, if there is a ``store``, in it."""
    jobs = []
    for path, real, state in zip(paths, real_paths(paths), states_of(paths, key).tolist(), strict=True):
        files = [] if store is None else [entry_file(store, real)]
        if isinstance(path, Path):
            files.append(path.parent / NEXT_TO_SHARDS / path.name)
        jobs.append(_Job(files, path, (state[0], state[1]), key))
    return jobs


def _scan_missing(jobs: Sequence[_Job], workers: int) -> int:
    """Scans the shards that have no current entry, and writes their entries. Returns their number."""
    missing = [job for job in jobs if job.entry() is None]
    if changed := [str(job.path) for job in missing if any(read_row(file) is not None for file in job.files)]:
        named = ", ".join(changed[:_MAX_NAMED]) + (", …" if len(changed) > _MAX_NAMED else "")
        count = f"{len(changed)} of {len(jobs)} shards"
        logger.warning("%s: %s have changed since they were indexed (%s)", jobs[0].key, count, named)
    with progress_bar(total=len(jobs), desc="indexing shards", leave=False) as bar:
        bar.update(len(jobs) - len(missing))
        if workers == 1 or len(missing) <= 1:
            for job in missing:
                _scan(job)
                bar.update(1)
            return len(missing)
        try:
            with ProcessPoolExecutor(workers, initializer=die_with_parent) as pool:
                for _ in pool.map(_scan, missing):
                    bar.update(1)
        except BrokenProcessPool:
            raise UserError(
                "a process that indexes shards was killed, probably by the system because memory was full",
                where=jobs[0].key,
                remedy="lower --workers and rerun the same command to continue",
            ) from None
    return len(missing)


def _scan(job: _Job) -> None:
    """Scans a shard and writes its entry."""
    write_entry(job.files[0], job.state, scan_shard(job.path, job.key, job.state))


def _assemble(own: Path, jobs: Sequence[_Job]) -> int:
    """Writes the index of a list of shards from their entries, with one entry in memory at a time, and moves it into place
    atomically.

    Returns:
        The number of records.

    Raises:
        OSError: if an entry is missing, because another process has removed it.
    """
    _remove_stale(own)
    entries = [job.entry() for job in jobs]
    found = [entry for entry in entries if entry is not None]
    if len(found) < len(jobs):
        raise OSError("entries of shards were removed while the index was built")
    # On file systems without locks, other processes may write the same index.
    temporary = own.with_suffix(f".{socket.gethostname()}-{os.getpid()}.new")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    write_index(temporary, np.stack([row for _, row in found]), (read_offsets(file, row) for file, row in found))
    old = own.with_suffix(".old")
    if own.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.replace(own, old)
    os.replace(temporary, own)
    shutil.rmtree(old, ignore_errors=True)
    return int(sum(row[RECORDS] for _, row in found))


def _current(own: Path, paths: Sequence[ShardFile], key: str, ask_servers: bool) -> ShardsIndex | None:
    """Returns the index in a folder if it is up to date, otherwise None."""
    found = load(own, paths)
    if found is None:
        return None
    indexed = found.shards[:, : MODIFIED + 1]
    return found if np.array_equal(indexed, states_of(paths, key, None if ask_servers else indexed)) else None


def states_of(paths: Sequence[ShardFile], key: str, indexed: np.ndarray | None = None) -> np.ndarray:
    """Returns the current state of each shard as (S, 2) int64.

    Args:
        paths: S shards.
        key: config key of the shards, to name in error messages.
        indexed: (S, 2) int64, states that are assumed for remote shards. This saves every rank a request per shard, and reading a
            shard verifies its state anyway. If None, the servers are asked.

    Raises:
        UserError: if a shard cannot be read.
    """
    states = np.empty((len(paths), 2), np.int64)
    remote: dict[int, RemoteShard] = {}
    for number, path in enumerate(paths):
        if isinstance(path, RemoteShard):
            remote[number] = path
            continue
        try:
            status = os.stat(path)
        except OSError as error:
            raise UserError(
                f"{path}: {error.strerror or error}", where=key, remedy="check the file and its permissions"
            ) from None
        states[number] = status.st_size, status.st_mtime_ns
    if remote and indexed is not None:
        states[list(remote)] = indexed[list(remote)]
    elif remote:
        with ThreadPoolExecutor(_CONCURRENT_REQUESTS) as pool:
            states[list(remote)] = list(pool.map(RemoteShard.state, remote.values()))
    return states


def _index_in_memory(paths: Sequence[ShardFile], folder: Path | None, reason: str, key: str) -> ShardsIndex:
    """Builds the index of a small list of shards in memory, because it cannot be written."""
    jobs = _jobs(paths, None, key)
    entries = [job.entry() for job in jobs]
    missing = [job for job, entry in zip(jobs, entries, strict=True) if entry is None]
    total = sum(job.state[0] for job in missing)
    where = f"in {folder} ({reason})" if folder else f"({reason})"
    if len(missing) > _SHARDS_IN_MEMORY or total > _BYTES_IN_MEMORY:
        raise UserError(
            f"the index of {len(missing):,} shards of {total / 1000000000.0:,.1f} GB cannot be kept {where}, and "
            "every process would have to read all of them to build its own index",
            where=key,
            remedy="set data.cache_index to a writable folder with enough space",
        )
    _warn_not_cached(where)
    rows, starts, irregularities = [], [], []
    for job, entry in zip(jobs, entries, strict=True):
        if entry is None:
            scanned = scan_shard(job.path, key, job.state)
            rows.append(row_of(job.state, scanned))
            offsets = scanned.starts, scanned.irregularities
        else:
            rows.append(entry[1])
            offsets = read_offsets(*entry)
        starts.append(offsets[0])
        irregularities.append(offsets[1])
    return ShardsIndex(paths, np.stack(rows), np.concatenate(starts), np.concatenate(irregularities), None)


def _remove_stale(folder: Path) -> None:
    """Removes unfinished copies of an index that killed processes have left behind."""
    for leftover in folder.parent.glob(f"{folder.stem}.*.new"):
        with suppress(OSError):
            if time.time() - leftover.stat().st_mtime > _STALE_S:
                shutil.rmtree(leftover)


@contextmanager
def _build_lock(path: Path, key: str) -> Iterator[None]:
    """Context manager that waits until no other process builds this index. On file systems without locks, every process builds
    it."""
    with path.open("a") as file:
        reported = False
        while True:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not reported:
                    logger.info("%s: another process is building the index; waiting for it", key)
                reported = True
                time.sleep(_WAIT_S)
            except OSError:
                break
        yield


@functools.cache
def _warn_not_cached(where: str) -> None:
    """Warns only once, rather than for each list of shards."""
    logger.warning(
        "indexes of shards cannot be cached %s and are kept in memory; set data.cache_index to another folder", where
    )
