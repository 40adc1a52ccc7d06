"""A lock that allows only one process, on any machine, to write to a folder."""

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

from utils.errors import NotRegularError, UserError
from utils.files import check_regular, parse_json, read_text

LOCK_FILE = ".lock"
LEASE_FILE = ".lease"
RENEW_S = 20.0
"""Interval in seconds at which a lease is renewed."""
STALE_S = 180.0
"""Age in seconds after which a lease counts as abandoned by its process."""
POLL_S = 1.0
"""Interval in seconds at which a folder that is in use is checked again."""
SETTLE_S = 2.0
"""Seconds to wait after taking over a stale lease. If several processes take it over at the same time, the last writer wins."""

NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)
"""Error numbers of a disk that does not support locks."""


logger = logging.getLogger(__name__)


class FolderInUseError(UserError):
    """The folder is in use by another process."""


class FolderLock:
    """Context manager that locks a folder for this process until the block or the process ends. The folder is created if it does
    not exist.

    The lock is a kernel lock on the file ``.lock`` in the folder, which records the host and the process. The lock is released
    when the process is killed, and is not inherited by forked workers. On disks that do not support locks, a lease is used
    instead: the file ``.lease``, which a thread renews. Another process may take over a lease that has expired.

    Args:
        folder: the folder to lock.
        wait_s: seconds to wait if another process uses the folder.

    Raises:
        UserError: when the context is entered, if another process uses the folder, or if the folder cannot be written.
    """

    def __init__(self, folder: Path, wait_s: float = 0):
        self.folder, self.path = folder, folder / LOCK_FILE
        self.wait_s = wait_s
        self._file: IO[str] | None = None
        self._token = uuid.uuid4().hex
        self._end = threading.Event()

    def __enter__(self) -> FolderLock:
        ends = time.monotonic() + self.wait_s
        warned = False
        while True:
            try:
                return self._take()
            except FolderInUseError as error:
                if time.monotonic() >= ends:
                    raise
                if not warned:
                    logger.warning(
                        "%s; waiting up to %.0f s (--wait)", UserError(error.what, where=error.where), self.wait_s
                    )
                warned = True
            time.sleep(POLL_S)

    def _take(self) -> FolderLock:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.path = self.folder / LOCK_FILE
            check_regular(self.path)
            try:
                self._lock()
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    raise
                self.path.unlink(missing_ok=True)
                self.path = self.folder / LEASE_FILE
                self._lease()
        except NotRegularError as error:
            reason = f"{self.path.name} {error.strerror}; remove it"
            raise UserError(
                f"cannot be written: {reason}, or use another folder", where=f"--output {self.folder}"
            ) from None
        except OSError as error:
            reason = error.strerror or str(error)
            raise UserError(
                f"cannot be written: {reason}", where=f"--output {self.folder}", remedy="use another folder"
            ) from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        if self._file is not None or self._token in self._read():  # otherwise another process took over the lease
            self.path.unlink(missing_ok=True)  # while still locked: waiting processes check that the file still exists
        if self._file is not None:
            self._file.close()

    def _lock(self) -> None:
        while True:
            file = self.path.open("a+", encoding="utf-8")
            try:
                # With flock, forked workers would share the lock, and a hanging worker would hold it after the run.
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                is_locked = error.errno in (errno.EACCES, errno.EAGAIN)
                file.close()
                if is_locked:
                    raise self._taken() from None
                raise
            if self.path.exists() and os.fstat(file.fileno()).st_ino == self.path.stat().st_ino:
                break
            file.close()  # the previous owner removed the file when it released the lock
        self._file = file
        file.truncate(0)
        file.write(self._owner())
        file.flush()

    def _lease(self) -> None:
        """Creates the lease, or takes over a stale lease."""
        while not self._created():
            age = self._age()
            if age is None:
                continue  # the owner has just released it
            if age < STALE_S:
                raise self._taken()
            self.path.write_text(self._owner(), encoding="utf-8")
            time.sleep(SETTLE_S)
            if self._token not in self._read():
                raise self._taken()
            break
        threading.Thread(target=self._renew, daemon=True, name="lease").start()

    def _created(self) -> bool:
        """Tries to create the lease. Returns False if a lease already exists."""
        try:
            with self.path.open("x", encoding="utf-8") as file:
                file.write(self._owner())
        except FileExistsError:
            return False
        return True

    def _age(self) -> float | None:
        """Returns the seconds since the lease was renewed, measured by the clock of the file system, or None if there is no
        lease."""
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
                continue  # the next renewal may succeed; a lease outlasts several missed renewals

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
        return FolderInUseError(f"{self.folder} is in use by {who}; wait for it, stop it, or use another --output")
