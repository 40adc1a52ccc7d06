"""Atomic writes: after a crash, a file has either its old or its new content."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def expanded(path: str | Path) -> Path:
    """The path with ``~`` as the home folder; unchanged where there is none, which ``Path.expanduser`` refuses to do."""
    return Path(os.path.expanduser(path))


def cache_folder() -> Path | None:
    """Our part of the user's cache folder of the platform; None for a user without a home."""
    home = expanded("~")
    variable = {"darwin": "", "win32": "LOCALAPPDATA"}.get(sys.platform, "XDG_CACHE_HOME")
    named = os.environ.get(variable)
    if not named and not home.is_absolute():
        return None
    caches = home / "Library" / "Caches" if sys.platform == "darwin" else home / ".cache"
    return Path(named or caches) / "x2vlm"


def sync_file(path: Path) -> None:
    """Flush a file, or the entries of a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Replace ``path`` atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary file beside ``path``, which replaces ``path`` when the block ends without an exception."""
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
    """Yields a temporary folder beside ``path``, which is renamed to it when the block ends without an exception."""
    temporary = path.with_name(f".{path.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)  # of a process that was killed
    try:
        temporary.mkdir(parents=True)
        yield temporary
        for written in temporary.rglob("*"):
            sync_file(written)
        temporary.rename(path)
        sync_file(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
