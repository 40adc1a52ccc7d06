"""One writer for a folder, over processes and machines."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import socket
import threading
import time
import uuid
from pathlib import Path
from types import TracebackType
from typing import IO

from utils.errors import UserError
from utils.files import parse_json, read_text

LOCK_FILE = ".lock"
LEASE_FILE = ".lease"
RENEW_S = 20.0
"""Time between two renewals of a lease."""
STALE_S = 180.0
"""Age from which a lease that was not renewed is of a process that is gone."""
WAIT_S = 240
"""Time in which the lock of a process on a lost node ends: that of a lease, and more than NFS servers take (90 s)."""
POLL_S = 1.0
"""Time between two looks at a folder that another process has."""
SETTLE_S = 2.0
"""Time in which two processes that take over one stale lease have both written: the last one has it."""

NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)
"""Errors of a disk without locks."""


logger = logging.getLogger(__name__)


class FolderInUseError(UserError):
    """Another process has the folder."""


class FolderLock:
    """Context manager: the folder, made if missing, belongs to this process until the block ends or the process does.

    The lock is the kernel's, on ``folder/.lock``, which names host and process. A process that is killed gives it up, and forked
    workers have no part in it. On disks without locks it is a lease, ``folder/.lease``: a thread renews it, and an old one is
    free.

    Args:
        folder: the folder.
        wait_s: seconds to wait for another process that has it.

    Raises:
        UserError: (on entering) another process has the folder, or it cannot be written.
    """

    def __init__(self, folder: Path, wait_s: float = 0):
        self.folder, self.path = folder, folder / LOCK_FILE
        self.wait_s = wait_s
        self._file: IO[str] | None = None
        self._token = uuid.uuid4().hex
        self._end = threading.Event()

    def __enter__(self) -> FolderLock:
        ends = time.monotonic() + self.wait_s
        told = False
        while True:
            try:
                return self._take()
            except FolderInUseError as error:
                if time.monotonic() >= ends:
                    raise
                if not told:
                    logger.warning("%s; waiting up to %.0f s (--wait)", str(error).partition(";")[0], self.wait_s)
                told = True
            time.sleep(POLL_S)

    def _take(self) -> FolderLock:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.path = self.folder / LOCK_FILE
            try:
                self._lock()
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    raise
                self.path.unlink(missing_ok=True)
                self.path = self.folder / LEASE_FILE
                self._lease()
        except OSError as error:
            reason = error.strerror or str(error)
            raise UserError(f"--output {self.folder}: cannot be written: {reason}; give another folder") from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        if self._file is not None or self._token in self._read():  # else another process took the lease over
            self.path.unlink(missing_ok=True)  # while it is locked: who waits looks whether the file is still there
        if self._file is not None:
            self._file.close()

    def _lock(self) -> None:
        while True:
            file = self.path.open("a+", encoding="utf-8")
            try:
                # Not flock: forked workers would share it, and one that hangs would hold it after the run.
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                held = error.errno in (errno.EACCES, errno.EAGAIN)
                file.close()
                if held:
                    raise self._taken() from None
                raise
            if self.path.exists() and os.fstat(file.fileno()).st_ino == self.path.stat().st_ino:
                break
            file.close()  # the process before removed it at its end
        self._file = file
        file.truncate(0)
        file.write(self._owner())
        file.flush()

    def _lease(self) -> None:
        """Create the file, or take over a stale one."""
        while not self._created():
            age = self._age()
            if age is None:
                continue  # its owner has just given it up
            if age < STALE_S:
                raise self._taken()
            self.path.write_text(self._owner(), encoding="utf-8")
            time.sleep(SETTLE_S)
            if self._token not in self._read():
                raise self._taken()
            break
        threading.Thread(target=self._renew, daemon=True, name="lease").start()

    def _created(self) -> bool:
        """Create the lease; returns whether there was none."""
        try:
            with self.path.open("x", encoding="utf-8") as file:
                file.write(self._owner())
        except FileExistsError:
            return False
        return True

    def _age(self) -> float | None:
        """Seconds since the lease was renewed, by the clock of the disk; None: there is none."""
        probe = self.path.with_name(f"{LEASE_FILE}.{self._token}")
        probe.touch()
        try:
            return probe.stat().st_mtime - self.path.stat().st_mtime
        except FileNotFoundError:
            return None
        finally:
            probe.unlink()

    def _renew(self) -> None:
        while not self._end.wait(RENEW_S):
            try:
                os.utime(self.path)
            except OSError:
                continue  # the next renewal may succeed; a lease lasts for several

    def _owner(self) -> str:
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        return json.dumps({"host": socket.gethostname(), "process": os.getpid(), "since": since, "token": self._token})

    def _read(self) -> str:
        try:
            return read_text(self.path, errors="replace")
        except OSError:
            return ""

    def _taken(self) -> FolderInUseError:
        try:
            owner = parse_json(self._read())
            who = f"process {owner['process']} on {owner['host']}, since {owner['since']}"
        except (ValueError, KeyError, TypeError):
            who = "another process"
        return FolderInUseError(f"{self.folder} is in use by {who}; wait for it, stop it, or give another --output")
