"""Making the index of a list of shards: once, by whoever comes first, in parts, so that an interrupted one goes on."""

from __future__ import annotations

import fcntl
import functools
import logging
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from dataset.shards.finding import ShardFile
from dataset.shards.index import CHANGED, RECORDS, ShardsIndex, load, name_of
from dataset.shards.prepared import scanned_before
from dataset.shards.scanning import ScannedShard, scan_shard
from dataset.shards.states import states_of
from utils.errors import UserError
from utils.processes import die_with_parent
from utils.progress import progress_bar

PART = 64
"""Shards of a part, which is kept when the making of an index is interrupted."""

_WAIT_S = 0.5
_TOLD = 3

logger = logging.getLogger(__name__)


def open_index(
    paths: Sequence[ShardFile], folder: Path | None, key: str, workers: int = 1, ask: bool = False
) -> ShardsIndex:
    """The index of shards; made where there is none, and anew for shards that have changed since.

    Args:
        paths: the shards.
        folder: of indexes; None, or one that cannot be written: a new index stays in memory.
        key: config key of the shards, for messages.
        workers: processes that make a new one.
        ask: ask servers whether remote shards have changed.

    Raises:
        UserError: a shard cannot be read.
    """
    name = name_of(paths)
    try:
        if folder is None:
            raise OSError("the user has no home folder")
        found = _current(folder / f"{name}.index", paths, key, ask)
        if found is None:
            folder.mkdir(parents=True, exist_ok=True)
            with _alone(folder / f"{name}.lock", key):
                found = _current(folder / f"{name}.index", paths, key, ask)
                if found is None:
                    make_index(folder / f"{name}.index", paths, states_of(paths, key), key, workers)
                    found = load(folder / f"{name}.index", paths)
        if found is not None:
            return found
    except OSError as error:
        # On disks without locks, another process may be done, and have removed the parts.
        found = _current(folder / f"{name}.index", paths, key, ask) if folder is not None else None
        if found is not None:
            return found
        _warn_not_cached(folder, error.strerror or str(error))
    now = states_of(paths, key)
    scanned = [scan_shard(path, key) for path in paths]
    return ShardsIndex(paths, *_joined(now, scanned), None)


def _current(folder: Path, paths: Sequence[ShardFile], key: str, ask: bool) -> ShardsIndex | None:
    """The index in a folder, if it is of the shards as they are now."""
    found = load(folder, paths)
    if found is None:
        return None
    now = states_of(paths, key, None if ask else found.shards[:, : CHANGED + 1])
    return found if np.array_equal(found.shards[:, : CHANGED + 1], now) else None


def make_index(folder: Path, paths: Sequence[ShardFile], now: np.ndarray, key: str, workers: int) -> None:
    """Make the index of shards, which have the states ``now``, in a folder; or make it anew."""
    started, before = time.monotonic(), load(folder, paths)
    _tell_why(folder, before, paths, now, key)
    parts = folder.with_suffix(".parts")
    parts.mkdir(exist_ok=True)
    cuts = [slice(start, min(start + PART, len(paths))) for start in range(0, len(paths), PART)]
    jobs = [(parts / f"{cut.start:09d}.npz", list(paths[cut]), now[cut], key) for cut in cuts]
    for job, cut in zip(jobs, cuts, strict=True):
        if before is not None and np.array_equal(before.shards[cut, : CHANGED + 1], job[2]):
            _write_part(job[0], *before.arrays_of(cut))
    _scan_parts(jobs, workers, len(paths))
    records = _join_parts(folder, [job[0] for job in jobs])
    shutil.rmtree(parts, ignore_errors=True)
    took = time.monotonic() - started
    logger.info("%s: index of %s records in %s shards made in %.1f s", key, f"{records:,}", f"{len(paths):,}", took)


def _tell_why(folder: Path, before: ShardsIndex | None, paths: Sequence[ShardFile], now: np.ndarray, key: str) -> None:
    if before is not None:
        changed = np.flatnonzero((before.shards[:, : CHANGED + 1] != now).any(axis=1))
        named = ", ".join(str(paths[number]) for number in changed[:_TOLD]) + (", …" if len(changed) > _TOLD else "")
        logger.warning(
            "%s: %d of %d shards have changed since they were indexed (%s); the index is made anew",
            key,
            len(changed),
            len(paths),
            named,
        )
    elif folder.exists():
        logger.warning("%s: the index %s is damaged; it is made anew", key, folder)


Job = tuple[Path, list[ShardFile], np.ndarray, str]


def _scan_parts(jobs: Sequence[Job], workers: int, count: int) -> None:
    """Make the parts that are not there yet."""
    bar = progress_bar(total=count, desc="indexing shards", leave=False)
    missing = [job for job in jobs if not _is_current(job)]
    with bar:
        bar.update(count - sum(len(job[1]) for job in missing))
        if workers > 1 and len(missing) > 1:
            try:
                with ProcessPoolExecutor(workers, initializer=die_with_parent) as pool:
                    for made in pool.map(_scan_part, missing):
                        bar.update(made)
            except BrokenProcessPool:
                raise UserError(
                    f"{missing[0][3]}: a process that indexes shards was killed; where memory is full, the system kills: lower "
                    "--workers; the same command goes on"
                ) from None
        else:
            for job in missing:
                bar.update(_scan_part(job))


def _is_current(job: Job) -> bool:
    """Whether a part is there, of the shards as they are now."""
    try:
        with np.load(job[0], allow_pickle=False) as part:
            return np.array_equal(part["shards"][:, : CHANGED + 1], job[2])
    except (OSError, ValueError, KeyError, EOFError):
        return False


def _scan_part(job: Job) -> int:
    """Write the part of some shards; returns how many they are."""
    file, paths, now, key = job
    scanned = [
        scanned_before(path, *state) or scan_shard(path, key) for path, state in zip(paths, now.tolist(), strict=True)
    ]
    _write_part(file, *_joined(now, scanned))
    return len(paths)


def _write_part(file: Path, shards: np.ndarray, starts: np.ndarray, oddities: np.ndarray) -> None:
    temporary = file.with_name(f"{file.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as opened:
        np.savez(opened, shards=shards, starts=starts, oddities=oddities)
    os.replace(temporary, file)


def _joined(now: np.ndarray, scanned: Sequence[ScannedShard]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The three arrays of shards."""
    rows = [[len(shard.starts), len(shard.oddities), int(shard.whole)] for shard in scanned]
    shards = np.concatenate([now, np.array(rows, np.int64)], axis=1)
    starts, oddities = ([getattr(shard, name) for shard in scanned] for name in ("starts", "oddities"))
    return shards, np.concatenate(starts), np.concatenate(oddities)


def _join_parts(folder: Path, files: Sequence[Path]) -> int:
    """Write the index from its parts, one of which is in memory at a time, in one step; returns the number of records."""
    temporary = folder.with_suffix(".new")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    shards, oddities = [], []
    for file in files:
        with np.load(file, allow_pickle=False) as part:
            shards.append(part["shards"])
            oddities.append(part["oddities"])
    table = np.concatenate(shards)
    records, at = int(table[:, RECORDS].sum()), 0
    if records:
        starts = np.lib.format.open_memmap(temporary / "starts.npy", "w+", np.dtype(np.int64), (records,))
        for file in files:
            with np.load(file, allow_pickle=False) as part:
                starts[at : at + len(part["starts"])] = part["starts"]
                at += len(part["starts"])
        starts.flush()
    np.save(temporary / "oddities.npy", np.concatenate(oddities))
    np.save(temporary / "shards.npy", table)
    old = folder.with_suffix(".old")
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.replace(folder, old)
    os.replace(temporary, folder)
    shutil.rmtree(old, ignore_errors=True)
    return records


@contextmanager
def _alone(path: Path, key: str) -> Iterator[None]:
    """Wait until no other process makes this index. On disks without locks each makes it."""
    with path.open("a") as file:
        told = False
        while True:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not told:
                    logger.info("%s: another process makes the index; waiting for it", key)
                told = True
                time.sleep(_WAIT_S)
            except OSError:
                break
        yield


@functools.cache
def _warn_not_cached(folder: Path | None, reason: str) -> None:
    """Warn once, not for each list of shards."""
    where = f"in {folder} ({reason})" if folder else f"({reason})"
    logger.warning(
        "indexes of shards are not cached %s; they stay in memory; data.cache_index names another folder", where
    )
