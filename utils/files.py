"""Reads regular files, and writes files atomically, so that after a crash, a file has either its old or its new content."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any

from utils.errors import NotRegularError, UserError

KINDS = {stat.S_ISDIR: "a folder", stat.S_ISFIFO: "a FIFO", stat.S_ISCHR: "a device", stat.S_ISSOCK: "a socket"}


def expanded(path: str | Path) -> Path:
    """Expands ``~`` to the home folder. If there is no home folder, the path is returned unchanged, whereas ``Path.expanduser``
    would raise an error."""
    return Path(os.path.expanduser(path))


def path_remedy(path: str | Path) -> str:
    """Returns the remedy for a path that does not exist."""
    return "check the path" if Path(path).is_absolute() else f"check the path (it is relative to {Path.cwd()})"


def cache_folder() -> Path | None:
    """Returns our subfolder of the platform's user cache folder, or None if the user has no home folder."""
    home = expanded("~")
    variable = {"darwin": "", "win32": "LOCALAPPDATA"}.get(sys.platform, "XDG_CACHE_HOME")
    named = os.environ.get(variable)
    if not named and not home.is_absolute():
        return None
    caches = home / "Library" / "Caches" if sys.platform == "darwin" else home / ".cache"
    return Path(named or caches) / "x2vlm"


def open_regular(path: Path) -> BufferedReader:
    """Opens a regular file for reading.

    The file is opened without blocking and checked before any byte is read, because a FIFO would block, and a device may never
    end.

    Raises:
        NotRegularError: if the path is not a regular file.
        OSError: if the file cannot be opened.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        check_regular(path, os.fstat(descriptor))
    except NotRegularError:
        os.close(descriptor)
        raise
    return os.fdopen(descriptor, "rb")


def check_regular(path: Path, status: os.stat_result | None = None) -> None:
    """Checks that a file that a library will open is a regular file or does not exist.

    Args:
        path: path of the file.
        status: status of the file, if it is already open.

    Raises:
        NotRegularError: if the path exists, but is not a regular file.
    """
    if status is None:
        if not os.path.exists(path):
            return
        status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        kind = next((name for is_kind, name in KINDS.items() if is_kind(status.st_mode)), "a special file")
        raise NotRegularError(path, f"is {kind}, not a regular file")


def read_text(path: Path, encoding: str = "utf-8", errors: str = "strict") -> str:
    """Returns the text of a regular file, with "\\n" at the end of each line. Raises UnicodeDecodeError and the errors of
    :func:`open_regular`."""
    with open_regular(path) as file:
        text = file.read().decode(encoding, errors)
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_json(path: Path, *, unique_keys: bool = False) -> Any:
    """Parses the JSON in a regular file. Raises the errors of :func:`read_text` and :func:`parse_json`."""
    return parse_json(read_text(path), unique_keys=unique_keys)


def parse_json(text: str | bytes, *, unique_keys: bool = False) -> Any:
    """Parses a JSON value.

    Args:
        text: the JSON.
        unique_keys: whether a key that occurs twice in an object is an error. Otherwise, its last value counts.

    Raises:
        ValueError: if the text is not JSON, is nested too deeply, or has a key twice although ``unique_keys`` is set.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique if unique_keys else None)
    except RecursionError:
        raise ValueError("its lists and objects are nested too deeply") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Returns a JSON object with the given keys and values.

    Raises:
        ValueError: if a key occurs twice.
    """
    values: dict[str, Any] = {}
    for key, value in pairs:
        if key in values:
            raise ValueError(f"the key {key!r} occurs twice in an object")
        values[key] = value
    return values


def check_writable(path: Path) -> None:
    """Checks that a file or folder can be created or replaced, by creating a temporary file in the nearest existing folder.

    Raises:
        NotRegularError: if the path is a FIFO, a device or a socket.
        OSError: if no file can be created there. ``filename`` is the folder.
    """
    if not path.is_dir():
        check_regular(path)
    folder = path if path.is_dir() else next(parent for parent in path.absolute().parents if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(folder)) from None


def sync_file(path: Path) -> None:
    """Flushes a file, or the entries of a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Replaces the file ``path`` atomically. Undecodable bytes in file names are escaped in the same way as in JSON."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Context that yields a temporary file in the folder of ``path``. The temporary file replaces ``path`` if the block ends
    without an exception.

    Raises:
        NotRegularError: if the path is a device, such as /dev/null, which must not be replaced by a file.
    """
    if path.is_char_device() or path.is_block_device():
        check_regular(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        sync_file(temporary)
        os.replace(temporary, path)
        sync_file(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Context that yields a temporary folder next to ``path``. The folder is renamed to ``path`` if the block ends without an
    exception.

    If ``path`` is an empty folder, it may be a mount point or a link, which cannot be replaced. In this case, the temporary
    folder is inside ``path``, and its content is moved to ``path``.

    Raises:
        UserError: if the path has no name, such as ".", or another process is writing the same folder, or has written it in the
            meantime.
    """
    inside = path / ".tmp"
    is_empty_folder = path.is_dir() and all(each == inside for each in path.iterdir())
    if path.name in ("", "..") and not is_empty_folder:
        raise UserError("is not the name of a new folder", where=path, remedy="pass a name")
    temporary = inside if is_empty_folder else path.with_name(f".{path.name}.tmp")
    temporary.mkdir(parents=True, exist_ok=True)
    handle = os.open(temporary, os.O_RDONLY)
    try:
        _lock_alone(handle, path)
        for leftover in temporary.iterdir():  # left behind by a process that was killed
            _remove(leftover)
        try:
            yield temporary
            for each in temporary.rglob("*"):
                sync_file(each)
            try:
                if not is_empty_folder:
                    temporary.rename(path)
                elif any(each != inside for each in path.iterdir()):
                    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
                else:
                    for each in inside.iterdir():
                        each.rename(path / each.name)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                raise UserError(
                    "another process has written it in the meantime", where=path, remedy="use another path"
                ) from None
            sync_file(path if is_empty_folder else path.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    finally:
        os.close(handle)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Context that yields a temporary folder next to ``path``. If the block ends without an exception, the folder replaces
    whatever is at ``path``: a folder, a file or a link."""
    complete = path.with_name(f".{path.name}.new")
    _remove(complete)
    with new_folder(complete) as temporary:
        yield temporary
    _remove(path)
    complete.rename(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _lock_alone(folder: int, path: Path) -> None:
    """Locks the temporary folder of ``path``, whose descriptor is ``folder``, until the descriptor is closed. On disks that do
    not support locks, does nothing."""
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        status = os.fstat(folder)
        if not status.st_nlink or (path.exists() and os.path.samestat(status, path.stat())):
            raise BlockingIOError  # the other process finished after we opened the folder
    except BlockingIOError:
        raise UserError(
            "another process is writing it", where=path, remedy="wait until it is done, or use another path"
        ) from None
    except OSError:
        return
