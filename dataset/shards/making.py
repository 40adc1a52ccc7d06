"""Builds the index of a list of shards.

The first process that needs the index builds it, and the others wait. It is built in parts, so that an interrupted build can be
resumed.
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
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dataset.shards.finding import ShardFile, real_paths
from dataset.shards.index import BYTES, MODIFIED, RECORDS, ShardsIndex, load, name_of
from dataset.shards.known import Known, known_before, known_in_folders, known_in_nearest, write_names
from dataset.shards.scanning import ScannedShard, scan_shard
from dataset.shards.states import states_of
from utils.errors import UserError
from utils.processes import die_with_parent
from utils.progress import progress_bar

PART = 64
"""Number of shards per part. Finished parts are kept if the build is interrupted."""

_SHARDS_IN_MEMORY, _BYTES_IN_MEMORY = 1_000, 20_000_000_000
"""Maximum number of shards, and of bytes in them, for which every process may build its own index in memory if no index can be
written. Reading that much takes a few minutes."""
_STALE_S = 86_400.0
"""Age at which an unfinished index is assumed to be left over from a killed process."""
_WAIT_S = 0.5
_MAX_NAMED = 3

logger = logging.getLogger(__name__)


def open_index(
    paths: Sequence[ShardFile], folder: Path | None, key: str, workers: int = 1, ask_servers: bool = False
) -> ShardsIndex:
    """Opens the index of some shards. The index is built if it is missing, and rebuilt if shards have changed.

    Args:
        paths: the shards.
        folder: folder that contains all indexes. If it is None or not writable, the index of a small list of shards is kept in
            memory.
        key: config key of the shards, to name in error messages.
        workers: number of processes that build an index.
        ask_servers: whether to ask servers if remote shards have changed.

    Raises:
        UserError: if a shard cannot be read, or if the list is too large for memory and its index cannot be written.
    """
    name = name_of(paths)
    try:
        if folder is None:
            raise OSError("the user has no home folder")
        found = _current(folder / f"{name}.index", paths, key, ask_servers)
        if found is None:
            folder.mkdir(parents=True, exist_ok=True)
            with _build_lock(folder / f"{name}.lock", key):
                found = _current(folder / f"{name}.index", paths, key, ask_servers)
                if found is None:
                    make_index(folder / f"{name}.index", paths, states_of(paths, key), key, workers)
                    found = load(folder / f"{name}.index", paths)
        if found is not None:
            return found
        raise OSError("the index is missing after it was written")
    except OSError as error:
        # On file systems without locks, another process may have finished the index and removed the parts.
        found = _current(folder / f"{name}.index", paths, key, ask_servers) if folder is not None else None
        if found is not None:
            return found
        return _index_in_memory(paths, folder, error.strerror or str(error), key)


def _index_in_memory(paths: Sequence[ShardFile], folder: Path | None, reason: str, key: str) -> ShardsIndex:
    """Builds the index of a small list of shards in memory, because it cannot be written."""
    states = states_of(paths, key)
    total = int(states[:, BYTES].sum())
    where = f"in {folder} ({reason})" if folder else f"({reason})"
    if len(paths) > _SHARDS_IN_MEMORY or total > _BYTES_IN_MEMORY:
        raise UserError(
            f"the index of {len(paths):,} shards of {total / 1000000000.0:,.1f} GB cannot be kept {where}, and "
            "every process would have to read all of them to build its own index",
            where=key,
            remedy="set data.cache_index to a writable folder with enough space",
        )
    _warn_not_cached(where)
    scanned = [scan_shard(path, key, _pair(state)) for path, state in zip(paths, states, strict=True)]
    return ShardsIndex(paths, *_joined(states, scanned), None)


def _current(folder: Path, paths: Sequence[ShardFile], key: str, ask_servers: bool) -> ShardsIndex | None:
    """Returns the index in a folder if it is up to date, otherwise None."""
    found = load(folder, paths)
    if found is None:
        return None
    states = states_of(paths, key, None if ask_servers else found.shards[:, : MODIFIED + 1])
    return found if np.array_equal(found.shards[:, : MODIFIED + 1], states) else None


def make_index(
    folder: Path,
    paths: Sequence[ShardFile],
    states: np.ndarray,
    key: str,
    workers: int,
    names: Sequence[str] | None = None,
) -> None:
    """Builds or rebuilds the index of some shards. Shards that another index already contains are not scanned again.

    Args:
        folder: folder of this index. Its parent folder may contain other indexes.
        paths: S shards.
        states: (S, 2) int64, current states of the shards.
        key: config key of the shards, to name in error messages.
        workers: number of processes.
        names: names under which the index lists the shards; if None, their paths with symbolic links resolved.
    """
    started, before = time.monotonic(), load(folder, paths)
    _report_rebuild(folder, before, paths, states, key)
    names = real_paths(paths) if names is None else names
    known = _find_known(folder, before is not None, paths, names, states, key)
    parts = folder.with_suffix(".parts")
    parts.mkdir(exist_ok=True)
    cuts = [slice(start, min(start + PART, len(paths))) for start in range(0, len(paths), PART)]
    jobs = [
        _Job(parts / f"{cut.start:09d}.npz", list(paths[cut]), states[cut], key, [one.part(cut) for one in known])
        for cut in cuts
    ]
    _scan_parts(jobs, workers, len(paths))
    records = _join_parts(folder, [job.file for job in jobs], names)
    shutil.rmtree(parts, ignore_errors=True)
    took = time.monotonic() - started
    logger.info("%s: indexed %s records in %s shards in %.1f s", key, f"{records:,}", f"{len(paths):,}", took)


def _report_rebuild(
    folder: Path, before: ShardsIndex | None, paths: Sequence[ShardFile], states: np.ndarray, key: str
) -> None:
    if before is not None:
        changed = np.flatnonzero((before.shards[:, : MODIFIED + 1] != states).any(axis=1))
        named = ", ".join(str(paths[number]) for number in changed[:_MAX_NAMED]) + (
            ", …" if len(changed) > _MAX_NAMED else ""
        )
        logger.warning(
            "%s: %d of %d shards have changed since they were indexed (%s); rebuilding the index",
            key,
            len(changed),
            len(paths),
            named,
        )
    elif folder.exists():
        logger.warning("%s: the index %s is damaged or was written by an earlier version; rebuilding it", key, folder)


def _find_known(
    folder: Path, has_previous: bool, paths: Sequence[ShardFile], names: Sequence[str], states: np.ndarray, key: str
) -> list[Known]:
    """Returns the shards that other indexes, or the previous index of this list, already contain."""
    known = known_in_folders(paths, states)
    if has_previous:
        known.append(known_before(folder, states))
    is_known = np.zeros(len(paths), bool)
    for one in known:
        is_known |= one.rows >= 0
    nearest = known_in_nearest(folder.parent, names, states) if not is_known.all() else None
    if nearest is not None and (taken := (nearest.rows >= 0) & ~is_known).any():
        logger.info(
            "%s: %s of %s shards are already in the index of another list (%s); %s are scanned",
            key,
            f"{taken.sum():,}",
            f"{len(paths):,}",
            nearest.index,
            f"{(~(is_known | taken)).sum():,}",
        )
        known.append(nearest)
    return known


class _Job(NamedTuple):
    """A part of the index: its file, its shards and their current states, and the shards that other indexes already contain."""

    file: Path
    paths: list[ShardFile]
    states: np.ndarray
    key: str
    known: list[Known]


def _scan_parts(jobs: Sequence[_Job], workers: int, count: int) -> None:
    """Builds the missing parts."""
    bar = progress_bar(total=count, desc="indexing shards", leave=False)
    missing = [job for job in jobs if not _is_current(job)]
    with bar:
        bar.update(count - sum(len(job.paths) for job in missing))
        if workers > 1 and len(missing) > 1:
            try:
                with ProcessPoolExecutor(workers, initializer=die_with_parent) as pool:
                    for finished in pool.map(_scan_part, missing):
                        bar.update(finished)
            except BrokenProcessPool:
                raise UserError(
                    "a process that indexes shards was killed, probably by the system because memory was full",
                    where=missing[0].key,
                    remedy="lower --workers and rerun the same command to continue",
                ) from None
        else:
            for job in missing:
                bar.update(_scan_part(job))


def _is_current(job: _Job) -> bool:
    """Returns True if the part exists and is up to date."""
    try:
        with np.load(job.file, allow_pickle=False) as part:
            return np.array_equal(part["shards"][:, : MODIFIED + 1], job.states)
    except (OSError, ValueError, KeyError, EOFError):
        return False


def _scan_part(job: _Job) -> int:
    """Writes a part of the index; returns its number of shards."""
    scanned: dict[int, ScannedShard] = {}
    for known in job.known:
        scanned |= known.scanned(job.states)
    for number, path in enumerate(job.paths):
        if number not in scanned:
            scanned[number] = scan_shard(path, job.key, _pair(job.states[number]))
    _write_part(job.file, *_joined(job.states, [scanned[number] for number in range(len(job.paths))]))
    return len(job.paths)


def _pair(state: np.ndarray) -> tuple[int, int]:
    return int(state[0]), int(state[1])


def _write_part(file: Path, shards: np.ndarray, starts: np.ndarray, irregularities: np.ndarray) -> None:
    temporary = file.with_name(f"{file.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as opened:
        np.savez(opened, shards=shards, starts=starts, irregularities=irregularities)
    os.replace(temporary, file)


def _joined(states: np.ndarray, scanned: Sequence[ScannedShard]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the three arrays of an index: shards, starts and irregularities."""
    rows = [[len(shard.starts), len(shard.irregularities), int(shard.complete), shard.links] for shard in scanned]
    shards = np.concatenate([states, np.array(rows, np.int64)], axis=1)
    starts, irregularities = ([getattr(shard, name) for shard in scanned] for name in ("starts", "irregularities"))
    return shards, np.concatenate(starts), np.concatenate(irregularities)


def _join_parts(folder: Path, files: Sequence[Path], names: Sequence[str]) -> int:
    """Joins the parts into the index, with one part in memory at a time, and moves the index into place atomically.

    Returns:
        The number of records.
    """
    _remove_stale(folder)
    # On file systems without locks, other processes may write the same index.
    temporary = folder.with_suffix(f".{socket.gethostname()}-{os.getpid()}.new")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    shards, irregularities = [], []
    for file in files:
        with np.load(file, allow_pickle=False) as part:
            shards.append(part["shards"])
            irregularities.append(part["irregularities"])
    table = np.concatenate(shards)
    records, at = int(table[:, RECORDS].sum()), 0
    if records:
        starts = np.lib.format.open_memmap(temporary / "starts.npy", "w+", np.dtype(np.int64), (records,))
        for file in files:
            with np.load(file, allow_pickle=False) as part:
                starts[at : at + len(part["starts"])] = part["starts"]
                at += len(part["starts"])
        starts.flush()
    np.save(temporary / "irregularities.npy", np.concatenate(irregularities))
    np.save(temporary / "shards.npy", table)
    write_names(temporary, names)
    old = folder.with_suffix(".old")
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.replace(folder, old)
    os.replace(temporary, folder)
    shutil.rmtree(old, ignore_errors=True)
    return records


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
