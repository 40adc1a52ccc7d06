"""A folder of blocks, bounded in bytes over all processes of a machine: what is dear to fetch or to compute again.

A block is a file: its content, and a digest of it and of the block's name. It is written in one step, and read through a memory
map once the digest has been checked. Blocks are spread over :data:`SHELVES` folders, each of which has its share of the bound
and a file that says how many bytes its blocks have: a process looks through a folder only to make room.
"""

from __future__ import annotations

import errno
import fcntl
import functools
import hashlib
import logging
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

SHELVES = 64
_DIGEST = 16
_NEW, _TOTAL = ".new", ".total"
"""In a shelf: a block that is written, and the bytes of all blocks."""
_MAPPED = 256
"""Blocks that a process holds mapped; they stay on the disk until it lets them go."""
_CHECKED = 1 << 16
"""Blocks of which a process knows that it has checked the digest."""
_LOCKS = 1024
_ROOM = 0.9
"""Share of its bound down to which a full shelf is emptied, so that it is looked through seldom."""
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_USED_S = 30.0
"""Time after which the use of a block is noted again."""

logger = logging.getLogger(__name__)

Block = bytes | memoryview


class BlockCache:
    """The blocks of a folder. One thread of a process gets them; others may :meth:`bring` them before.

    Args:
        folder: made if missing.
        bound: the most bytes of all blocks. The least recently used go first.
        remedy: for the warning that nothing can be kept in the folder.
    """

    def __init__(self, folder: Path, bound: int, remedy: str = "give another folder"):
        self.folder, self.shelf_bound, self.remedy = folder, bound // SHELVES, remedy
        self._mapped: OrderedDict[str, tuple[Block, float]] = OrderedDict()
        self._checked: dict[str, int] = {}

    @staticmethod
    def least_bound(size: int) -> int:
        """The least ``bound`` at which a block of ``size`` bytes can be kept: each shelf has room for one."""
        return (size + _DIGEST) * SHELVES

    def get(self, name: str, size: int, fetch: Callable[[], bytes]) -> Block:
        """The block ``name`` of ``size`` bytes: from memory, from the folder, or by ``fetch``, in one process at a time."""
        now = time.monotonic()
        block, used = self._mapped.get(name, (None, 0.0))
        if block is not None and now - used < _USED_S:
            self._mapped.move_to_end(name)
            return block
        path = self._path(name)
        block = self._use(path, block) if block is not None else self._open(path, size)
        if block is None:
            with self._alone_with(name):
                block = self._open(path, size)
                if block is None:
                    block = fetch()
                    self._keep(path, block)
                    block = self._open(path, size) or block
        self._mapped[name] = block, now
        self._mapped.move_to_end(name)
        if len(self._mapped) > _MAPPED:
            self._mapped.popitem(last=False)
        return block

    def read(self, name: str, size: int) -> Block | None:
        """The block ``name`` of ``size`` bytes; None where it is not in the folder."""
        return self._open(self._path(name), size)

    def bring(self, name: str, size: int, fetch: Callable[[], bytes]) -> bool:
        """Have a block in the folder before it is got; returns whether it could be kept there."""
        path = self._path(name)
        if self._is_there(path, size):
            return True
        with self._alone_with(name):
            return self._is_there(path, size) or self._keep(path, fetch())

    def _is_there(self, path: Path, size: int) -> bool:
        try:
            return os.stat(path).st_size == size + _DIGEST
        except OSError:
            return False

    def _alone_with(self, name: str) -> AbstractContextManager[bool]:
        return self._alone(f"block-{int(name[:8], 16) % _LOCKS:04d}")

    def _path(self, name: str) -> Path:
        return self.folder / f"{int(name[-8:], 16) % SHELVES:02d}" / name

    def _use(self, path: Path, block: Block) -> Block:
        """Note that a block is in use; another process may have taken its file away."""
        with suppress(OSError):
            os.utime(path)
        return block

    def _open(self, path: Path, size: int) -> Block | None:
        """A block of the folder; None where it is not there, or damaged: then it is taken away."""
        try:
            status = os.stat(path)
            if status.st_size == size + _DIGEST:
                view = _mapped(path, status.st_size)
                if self._is_whole(path.name, status.st_ino, view):
                    return self._use(path, view[:size])
        except (OSError, RuntimeError):  # torch raises the second where the file has gone meanwhile
            return None
        logger.warning("%s is damaged; the block is fetched again", path)
        with suppress(OSError), self._alone(f"shelf-{path.parent.name}"):
            (path.parent / _TOTAL).unlink(missing_ok=True)
            path.unlink()
        return None

    def _is_whole(self, name: str, file: int, content: memoryview) -> bool:
        """Whether content and digest agree; each file is looked at once."""
        if self._checked.get(name) == file:
            return True
        if _digest(name, content[:-_DIGEST]) != content[-_DIGEST:]:
            return False
        self._note(name, file)
        return True

    def _note(self, name: str, file: int) -> None:
        """A file is known to be whole."""
        if len(self._checked) >= _CHECKED:
            self._checked.clear()
        self._checked[name] = file

    def _keep(self, path: Path, content: bytes) -> bool:
        """Write a block, after making room; where the disk has none, or cannot be written, blocks stay in memory."""
        needed, shelf = len(content) + _DIGEST, path.parent
        if needed > self.shelf_bound:
            return False
        try:
            with self._alone(f"shelf-{shelf.name}") as alone:
                shelf.mkdir(parents=True, exist_ok=True)
                total = _read_total(shelf) if alone else None
                if total is None or total + needed > self.shelf_bound:
                    total = _make_room(shelf, int(_ROOM * self.shelf_bound), self.shelf_bound - needed)
                try:
                    self._write(path, content, total)
                except OSError as error:
                    if error.errno not in _NO_ROOM:
                        raise
                    # Others fill the disk too: the shelf gives back half of what it has.
                    self._write(path, content, _make_room(shelf, total // 2, total // 2))
        except OSError as error:
            _warn_not_kept(self.folder, error.strerror or str(error), self.remedy)
            return False
        return True

    def _write(self, path: Path, content: bytes, total: int) -> None:
        """Write a block to its shelf, which has ``total`` bytes."""
        # One name for each shelf: what a killed process leaves is overwritten.
        temporary = path.parent / _NEW
        with temporary.open("wb") as file:
            file.write(content)
            file.write(_digest(path.name, content))
        # First the total: where a process is killed in between, it is too large, which a look at the shelf puts right.
        _write_total(path.parent, total + len(content) + _DIGEST)
        os.replace(temporary, path)
        self._note(path.name, os.stat(path).st_ino)

    @contextmanager
    def _alone(self, name: str) -> Iterator[bool]:
        """Wait until no other process or thread has the lock; on disks without locks, do not. Yields whether there is one."""
        try:
            folder = self.folder / "locks"
            folder.mkdir(parents=True, exist_ok=True)
            file = (folder / name).open("a")
        except OSError as error:
            _warn_not_kept(self.folder, error.strerror or str(error), self.remedy)
            yield False
            return
        with file:
            # Unlike lockf's, these locks exclude threads too. They end with the last copy of the open file, and a process that is
            # forked meanwhile has one: so they are given back before it is closed.
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
    """The bytes of the blocks of a shelf; None: nobody has noted them."""
    try:
        return int((shelf / _TOTAL).read_bytes())
    except (OSError, ValueError):
        return None


def _write_total(shelf: Path, total: int) -> None:
    # In place: the length stays the same, so that a full disk has room for it.
    file = os.open(shelf / _TOTAL, os.O_WRONLY | os.O_CREAT, 0o666)
    try:
        os.write(file, b"%020d" % total)
    finally:
        os.close(file)


def _make_room(shelf: Path, room: int, most: int) -> int:
    """Look through a shelf, and take the least recently used blocks away if it has too much; returns the bytes that are left.

    Args:
        shelf: the folder.
        room: bytes that may be left where blocks are taken away.
        most: bytes that may always be left.
    """
    blocks = []
    (shelf / _NEW).unlink(missing_ok=True)
    with os.scandir(shelf) as entries:
        for entry in entries:
            if entry.name != _TOTAL:
                status = entry.stat()
                blocks.append((status.st_mtime, status.st_size, entry.path))
    total = sum(size for _, size, _ in blocks)
    if total > most:
        for _, size, path in sorted(blocks):
            Path(path).unlink(missing_ok=True)
            total -= size
            if total <= min(room, most):
                break
    return total


def _mapped(path: Path, size: int) -> memoryview:
    """The bytes of a file. Python's own map would hold a file descriptor for each of :data:`_MAPPED` blocks."""
    import torch

    return torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8).numpy().data.toreadonly()


def _digest(name: str, content: Block) -> bytes:
    # With the name: on disks without locks, processes can put their blocks in each other's place.
    digest = hashlib.sha256(name.encode())
    digest.update(content)
    return digest.digest()[:_DIGEST]


@functools.cache
def _warn_not_kept(folder: Path, reason: str, remedy: str) -> None:
    logger.warning("blocks are not kept in %s: %s; %s", folder, reason, remedy)
