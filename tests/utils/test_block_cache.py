"""The block cache is bounded, shared by processes, and never returns wrong data."""

from __future__ import annotations

import errno
import multiprocessing
import os
import time
from pathlib import Path

import pytest

from tests.messages import OneLine
from utils import block_cache
from utils.block_cache import SHELVES, BlockCache

NAMES = [f"{number:040x}" for number in range(0, 64 * SHELVES, SHELVES)]
"""All blocks are on one shelf."""


def fetch_none() -> bytes:
    raise AssertionError("fetched again")


def blocks_of(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.rglob("*") if len(file.name) == 40)


def test_a_block_is_fetched_once_by_all_processes(tmp_path):
    first = BlockCache(tmp_path, 1 << 20)
    assert first.get(NAMES[0], 5, lambda: b"block") == b"block"
    assert first.get(NAMES[0], 5, fetch_none) == b"block"
    assert BlockCache(tmp_path, 1 << 20).get(NAMES[0], 5, fetch_none) == b"block"


def get_slowly(folder: Path, fetched: Path) -> None:
    def fetch() -> bytes:
        (fetched / str(os.getpid())).touch()
        time.sleep(0.2)
        return b"block"

    assert BlockCache(folder, 1 << 20).get(NAMES[0], 5, fetch) == b"block"


def test_processes_that_need_the_same_block_fetch_it_once(tmp_path):
    (tmp_path / "fetched").mkdir()
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=get_slowly, args=(tmp_path / "cache", tmp_path / "fetched")) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert len(list((tmp_path / "fetched").iterdir())) == 1


@pytest.mark.parametrize("damage", [b"blocc" + b"x" * 16, b"blo", b""])
def test_a_damaged_block_is_fetched_again(tmp_path, damage, caplog):
    BlockCache(tmp_path, 1 << 20).get(NAMES[0], 5, lambda: b"block")
    [file] = list(tmp_path.rglob(NAMES[0]))
    file.write_bytes(damage)
    assert BlockCache(tmp_path, 1 << 20).get(NAMES[0], 5, lambda: b"block") == b"block"
    assert OneLine("damaged", "fetched again") in caplog.messages
    assert BlockCache(tmp_path, 1 << 20).get(NAMES[0], 5, fetch_none) == b"block"


def test_the_folder_stays_within_its_limit_and_evicts_the_least_recently_used(tmp_path, monkeypatch):
    monkeypatch.setattr(block_cache, "_MAX_MAPPED", 1)
    blocks = BlockCache(tmp_path, SHELVES * 4 * 116)
    for number, name in enumerate(NAMES[:12]):
        blocks.get(name, 100, lambda: b"x" * 100)
        [file] = tmp_path.rglob(name)
        os.utime(file, (number, number))
        os.utime(next(tmp_path.rglob(NAMES[0])), (1000, 1000))  # used all the time
        assert sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file()) <= SHELVES * 4 * 116
    assert blocks_of(tmp_path) == [NAMES[0], *NAMES[9:12]]


def test_a_block_that_is_in_use_can_be_deleted(tmp_path):
    blocks = BlockCache(tmp_path, 1 << 20)
    held = blocks.get(NAMES[0], 5, lambda: b"block")
    next(tmp_path.rglob(NAMES[0])).unlink()
    assert bytes(held) == b"block" and blocks.get(NAMES[0], 5, fetch_none) == b"block"


def test_blocks_stay_in_memory_if_the_folder_is_not_writable(tmp_path, caplog):
    (tmp_path / "file").touch()
    blocks = BlockCache(tmp_path / "file" / "cache", 1 << 20)
    assert blocks.get(NAMES[0], 5, lambda: b"block") == b"block"
    assert blocks.get(NAMES[0], 5, fetch_none) == b"block"
    assert "cannot be cached in" in caplog.text and "; use another folder" in caplog.text


def test_a_block_larger_than_a_shelf_is_not_kept(tmp_path):
    assert BlockCache(tmp_path, SHELVES * 10).get(NAMES[0], 5, lambda: b"block") == b"block"
    assert blocks_of(tmp_path) == []


def test_a_block_stored_under_another_name_is_fetched_again(tmp_path):
    """Two processes can cause this on a disk without locks."""
    blocks = BlockCache(tmp_path, 1 << 20)
    for name, content in zip(NAMES[:2], (b"first", b"other"), strict=True):
        blocks.get(name, 5, lambda content=content: content)
    os.replace(next(tmp_path.rglob(NAMES[1])), next(tmp_path.rglob(NAMES[0])))
    assert BlockCache(tmp_path, 1 << 20).get(NAMES[0], 5, lambda: b"first") == b"first"


def total_of(folder: Path) -> int:
    return int(next(folder.rglob(".total")).read_bytes())


def size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if len(file.name) == 40)


def test_a_shelf_is_scanned_only_when_it_is_full(tmp_path, monkeypatch):
    """A full shelf is reduced to nine tenths of its limit."""
    looked, look = [], block_cache._make_room
    monkeypatch.setattr(block_cache, "_make_room", lambda *arguments: looked.append(1) or look(*arguments))
    blocks = BlockCache(tmp_path, SHELVES * 40 * 116)
    for name in NAMES[:40]:
        blocks.get(name, 100, lambda: b"x" * 100)
    assert (len(looked), total_of(tmp_path)) == (1, 40 * 116)
    looked.clear()
    for name in NAMES[40:45]:
        blocks.get(name, 100, lambda: b"x" * 100)
        assert total_of(tmp_path) == size_of(tmp_path)
    assert (len(looked), size_of(tmp_path)) == (2, 37 * 116)


def keep(folder: Path, first: int) -> None:
    for name in NAMES[first : first + 8]:
        BlockCache(folder, 1 << 20).get(name, 100, lambda: b"x" * 100)


@pytest.mark.parametrize("noted", [b"", b"none", None])
def test_the_total_of_a_shelf_is_exact_over_processes_and_can_be_recomputed(tmp_path, noted):
    keep(tmp_path, 56)
    if noted is None:
        next(tmp_path.rglob(".total")).unlink()
    else:
        next(tmp_path.rglob(".total")).write_bytes(noted)
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=keep, args=(tmp_path, first)) for first in (0, 8, 16, 24)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert total_of(tmp_path) == size_of(tmp_path) == 40 * 116


def test_a_deleted_damaged_block_is_not_counted(tmp_path):
    keep(tmp_path, 0)
    next(tmp_path.rglob(NAMES[3])).write_bytes(b"short")
    keep(tmp_path, 3)
    assert total_of(tmp_path) == size_of(tmp_path) == 11 * 116


def test_on_a_full_disk_a_shelf_deletes_half_of_its_blocks(tmp_path, monkeypatch):
    blocks, write = BlockCache(tmp_path, 1 << 20), BlockCache._write
    for number, name in enumerate(NAMES[:8]):
        blocks.get(name, 100, lambda: b"x" * 100)
        os.utime(next(tmp_path.rglob(name)), (number, number))

    def write_if_there_is_room(self, path, content, total):
        if size_of(tmp_path) > 5 * 116:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, path, content, total)

    monkeypatch.setattr(BlockCache, "_write", write_if_there_is_room)
    assert blocks.ensure(NAMES[8], 100, lambda: b"x" * 100)
    assert blocks_of(tmp_path) == NAMES[4:9] and total_of(tmp_path) == 5 * 116


def test_blocks_use_few_file_descriptors(tmp_path):
    before = len(os.listdir("/proc/self/fd"))
    blocks = BlockCache(tmp_path, 1 << 20)
    for number in range(200):
        blocks.get(f"{number:040x}", 5, lambda: b"block")
    assert len(os.listdir("/proc/self/fd")) - before <= 64
