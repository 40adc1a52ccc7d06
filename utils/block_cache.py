"""An on-disk cache of blocks that are expensive to fetch or compute, with a size limit shared by all processes on a machine.

Each block is stored in a file that contains the block's content, followed by a digest of the content and the block's name. Blocks
are written atomically and read through a memory map, after their digest has been verified. They are distributed over
:data:`SHELVES` folders ("shelves"). Each shelf has an equal share of the size limit, and a file that records the total size of
its blocks, so that a process scans a shelf only when it has to evict blocks.
"""

from __future__ import annotations

import errno
import fcntl
import functools
import hashlib
import logging
import os
import time
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

SHELVES = 64
_DIGEST = 16
_NEW, _TOTAL = ".new", ".total"
"""Names of two files in a shelf: the block that is being written, and the total size of all blocks in bytes."""
_MAX_MAPPED = 256
"""Maximum number of blocks that a process keeps mapped. An evicted block takes up disk space until all processes have unmapped
it."""
_MAX_VERIFIED = 1 << 16
"""Maximum number of blocks that a process remembers as verified."""
_LOCKS = 1024
_KEPT_FRACTION = 0.9
"""When a shelf is full, blocks are evicted until it is below this fraction of its limit, so that shelves are scanned rarely."""
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_TOUCH_INTERVAL_S = 30.0
"""Minimum interval in seconds between updates of a mapped block's access time."""

logger = logging.getLogger(__name__)

Block = bytes | memoryview


class BlockCache:
    """A folder of cached blocks. Only one thread of a process may call :meth:`get`; other threads may prefetch with
    :meth:`ensure`.

    Args:
        folder: folder of the cache. It is created if it does not exist.
        bound: maximum total size of all blocks in bytes. The least recently used blocks are evicted first.
        remedy: advice at the end of the warning that is logged if the folder cannot be written to.
        kind: prefix of the lock names. Two caches in the same folder need different prefixes if fetching a block of one cache
            also fetches blocks of the other cache; otherwise, they would deadlock.
        digest: function that computes a 16-byte digest of a block's name and content; by default, SHA-256.
    """

    def __init__(
        self,
        folder: Path,
        bound: int,
        remedy: str = "use another folder",
        kind: str = "block",
        digest: Callable[[str, Block], bytes] | None = None,
    ):
        self.folder, self.shelf_bound, self.remedy, self.kind = folder, bound // SHELVES, remedy, kind
        self._digest = digest or sha256_digest
        self._mapped: OrderedDict[str, tuple[Block, float]] = OrderedDict()
        self._verified: dict[str, int] = {}

    @staticmethod
    def min_bound(size: int) -> int:
        """Returns the minimum ``bound`` for caching blocks of ``size`` bytes, so that each shelf has room for one block."""
        return (size + _DIGEST) * SHELVES

    def get(self, name: str, size: int | None, fetch: Callable[[], Block]) -> Block:
        """Returns a block from memory, from the folder, or by calling ``fetch``.

        Args:
            name: name of the block. Blocks whose names begin with the same 8 digits share a lock, so while ``fetch`` runs for one
                of these blocks, it may also :meth:`add` the others.
            size: size of the block in bytes; None if only ``fetch`` knows the size.
            fetch: returns the block. Only one process at a time calls it.
        """
        now = time.monotonic()
        block, used = self._mapped.get(name, (None, 0.0))
        if block is not None and now - used < _TOUCH_INTERVAL_S:
            self._mapped.move_to_end(name)
            return block
        path = self._path(name)
        block = self._touch(path, block) if block is not None else self._open(path, size)
        if block is None:
            with self._lock_block(name):
                block = self._open(path, size)
                if block is None:
                    block = fetch()
                    self._store(path, block)
                    block = self._open(path, size) or block
        self._mapped[name] = block, now
        self._mapped.move_to_end(name)
        if len(self._mapped) > _MAX_MAPPED:
            self._mapped.popitem(last=False)
        return block

    def read(self, name: str, size: int) -> Block | None:
        """Returns the block ``name`` of ``size`` bytes, or None if it is not in the folder."""
        return self._open(self._path(name), size)

    def ensure(self, name: str, size: int, fetch: Callable[[], bytes]) -> bool:
        """Fetches a block into the folder unless the folder already contains it. Returns True if the folder contains the block
        afterwards."""
        path = self._path(name)
        if self._is_stored(path, size):
            return True
        with self._lock_block(name):
            return self._is_stored(path, size) or self._store(path, fetch())

    def add(self, name: str, content: Block) -> bool:
        """Stores a block whose content is already known. Returns True if the block is in the folder afterwards."""
        path = self._path(name)
        return self._is_stored(path, len(content)) or self._store(path, content)

    def has(self, name: str) -> bool:
        """Returns True if the block ``name`` is in the folder."""
        return self._path(name).exists()

    def _is_stored(self, path: Path, size: int) -> bool:
        try:
            return os.stat(path).st_size == size + _DIGEST
        except OSError:
            return False

    def _lock_block(self, name: str) -> AbstractContextManager[bool]:
        return self._lock(f"{self.kind}-{int(name[:8], 16) % _LOCKS:04d}")

    def _path(self, name: str) -> Path:
        return self.folder / f"{int(name[-8:], 16) % SHELVES:02d}" / name

    def _touch(self, path: Path, block: Block) -> Block:
        """Updates the access time of a block, unless another process has evicted its file. Returns the block."""
        with suppress(OSError):
            os.utime(path)
        return block

    def _open(self, path: Path, size: int | None) -> Block | None:
        """Memory-maps a block in the folder. Returns None if the block is missing or damaged. Damaged blocks are deleted."""
        try:
            status = os.stat(path)
            if status.st_size == size + _DIGEST if size is not None else status.st_size >= _DIGEST:
                view = _map_file(path, status.st_size)
                if self._is_intact(path.name, status.st_ino, view):
                    return self._touch(path, view[:-_DIGEST])
        except (OSError, RuntimeError):  # torch raises RuntimeError if the file has been deleted in the meantime
            return None
        logger.warning("%s is damaged; the block is fetched again", path)
        with suppress(OSError), self._lock(f"shelf-{path.parent.name}"):
            (path.parent / _TOTAL).unlink(missing_ok=True)
            path.unlink()
        return None

    def _is_intact(self, name: str, file: int, content: memoryview) -> bool:
        """Returns True if the content matches the digest. Each file is verified only once."""
        if self._verified.get(name) == file:
            return True
        if self._digest(name, content[:-_DIGEST]) != content[-_DIGEST:]:
            return False
        self._mark_verified(name, file)
        return True

    def _mark_verified(self, name: str, file: int) -> None:
        """Remembers that a file has been verified."""
        if len(self._verified) >= _MAX_VERIFIED:
            self._verified.clear()
        self._verified[name] = file

    def _store(self, path: Path, content: Block) -> bool:
        """Stores a block, and evicts others if necessary. Returns False if the block cannot be stored, for example because the
        disk is full or read-only. Blocks are then kept only in memory."""
        needed, shelf = len(content) + _DIGEST, path.parent
        if needed > self.shelf_bound:
            return False
        try:
            with self._lock(f"shelf-{shelf.name}") as locked:
                shelf.mkdir(parents=True, exist_ok=True)
                total = _read_total(shelf) if locked else None
                if total is None or total + needed > self.shelf_bound:
                    total = _make_room(shelf, int(_KEPT_FRACTION * self.shelf_bound), self.shelf_bound - needed)
                try:
                    self._write(path, content, total)
                except OSError as error:
                    if error.errno not in _NO_ROOM:
                        raise
                    # The disk may have been filled by other programs: free half of the shelf and retry.
                    self._write(path, content, _make_room(shelf, total // 2, total // 2))
        except OSError as error:
            _warn_not_cached(self.folder, error.strerror or str(error), self.remedy)
            return False
        return True

    def _write(self, path: Path, content: Block, total: int) -> None:
        """Writes a block to its shelf, whose blocks currently take ``total`` bytes."""
        # There is one temporary name per shelf, so that a file left behind by a killed process is overwritten.
        temporary = path.parent / _NEW
        with temporary.open("wb") as file:
            file.write(content)
            file.write(self._digest(path.name, content))
        # The total is updated first. If the process is then killed, the total is too large, and the next scan corrects it.
        _write_total(path.parent, total + len(content) + _DIGEST)
        os.replace(temporary, path)
        self._mark_verified(path.name, os.stat(path).st_ino)

    @contextmanager
    def _lock(self, name: str) -> Iterator[bool]:
        """Context in which this thread holds a lock that excludes other processes and threads. Yields True if the lock is held,
        or False on disks that do not support locks."""
        try:
            folder = self.folder / "locks"
            folder.mkdir(parents=True, exist_ok=True)
            file = (folder / name).open("a")
        except OSError as error:
            _warn_not_cached(self.folder, error.strerror or str(error), self.remedy)
            yield False
            return
        with file:
            # Unlike lockf, flock also excludes other threads. Closing the file does not release the lock if a process that was
            # forked in the meantime has a copy of the file descriptor, so the lock is released explicitly.
            locked = False
            with suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX)
                locked = True
            try:
                yield locked
            finally:
                with suppress(OSError):
                    fcntl.flock(file, fcntl.LOCK_UN)


def _read_total(shelf: Path) -> int | None:
    """Returns the recorded total size of a shelf in bytes, or None if it has not been recorded."""
    try:
        return int((shelf / _TOTAL).read_bytes())
    except (OSError, ValueError):
        return None


def _write_total(shelf: Path, total: int) -> None:
    # Written in place with a fixed length, so that it also works on a full disk.
    file = os.open(shelf / _TOTAL, os.O_WRONLY | os.O_CREAT, 0o666)
    try:
        os.write(file, b"%020d" % total)
    finally:
        os.close(file)


def _make_room(shelf: Path, target: int, limit: int) -> int:
    """Scans a shelf and, if it is too large, evicts the least recently used blocks. Returns the number of bytes that remain.

    Args:
        shelf: the folder.
        target: maximum number of bytes that may remain if blocks are evicted.
        limit: number of bytes above which blocks are evicted.
    """
    blocks = []
    (shelf / _NEW).unlink(missing_ok=True)
    with os.scandir(shelf) as entries:
        for entry in entries:
            if entry.name != _TOTAL:
                status = entry.stat()
                blocks.append((status.st_mtime, status.st_size, entry.path))
    total = sum(size for _, size, _ in blocks)
    if total > limit:
        for _, size, path in sorted(blocks):
            Path(path).unlink(missing_ok=True)
            total -= size
            if total <= min(target, limit):
                break
    return total


def _map_file(path: Path, size: int) -> memoryview:
    """Maps a file into memory. Python's mmap is not used, because it would keep a file descriptor open for each mapped block."""
    import torch

    return torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8).numpy().data.toreadonly()


def sha256_digest(name: str, content: Block) -> bytes:
    """Returns a digest that detects any damage."""
    # The digest covers the name because, on disks without locks, a process may overwrite the temporary file of another block.
    digest = hashlib.sha256(name.encode())
    digest.update(content)
    return digest.digest()[:_DIGEST]


def crc_digest(name: str, content: Block) -> bytes:
    """Returns a digest that detects accidental damage with a probability of 1 - 2^-32, in less than half the time of SHA-256."""
    return sha256_digest(name, b"%d %d" % (len(content), zlib.crc32(content)))


@functools.cache
def _warn_not_cached(folder: Path, reason: str, remedy: str) -> None:
    logger.warning("blocks cannot be cached in %s: %s; %s", folder, reason, remedy)
