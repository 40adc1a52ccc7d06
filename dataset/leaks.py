"""Images or videos that training and a held-out split share: then the held-out numbers are too good.

:func:`shared_images` finds the same file under one path or several (links, copies under another name, images inside shards):
equal paths, then equal bytes. It does not find an image that was encoded anew, resized or cropped.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dataset.media.video import VideoSource
from dataset.records.broken import BrokenRecordError
from dataset.records.schema import ImageSource

Source = ImageSource | VideoSource

MOST_FILES = 20_000
"""Files of a side whose sizes are compared; of more files, only the paths are."""

MOST_BYTES = 300_000_000
"""Bytes that are read to compare contents; candidates beyond them are compared by path alone."""


@dataclass(frozen=True)
class SharedImages:
    """Images of a held-out split that training has too.

    ``shared`` of the ``held_out`` different images; ``by_content`` of these have another path in training. ``example``: a place
    in training and one in the held-out split. ``contents_compared``: False where there were too many files, or bytes.
    """

    shared: int
    held_out: int
    by_content: int
    example: tuple[str, str] | None
    contents_compared: bool


def shared_images(training: Iterable[Source], held_out: Iterable[Source]) -> SharedImages:
    """The images or videos of ``held_out`` that are also in ``training``, by path and, for files that are small enough to read
    (:data:`MOST_FILES`, :data:`MOST_BYTES`), by content."""
    ours, theirs = _by_identity(training), _by_identity(held_out)
    pairs = [(ours[name].place, source.place) for name, source in theirs.items() if name in ours]
    others = [source for name, source in theirs.items() if name not in ours]
    copies, complete = _copies(list(ours.values()), others)
    found = [*pairs, *copies]
    return SharedImages(len(found), len(theirs), len(copies), found[0] if found else None, complete)


def _by_identity(sources: Iterable[Source]) -> dict[str, Source]:
    """The different images by their real path, or if a record holds the image itself, by its content."""
    folders: dict[Path, str] = {}
    found: dict[str, Source] = {}
    for source in sources:
        if source.path is not None:
            parent = source.path.parent
            folder = folders.get(parent) or folders.setdefault(parent, os.path.realpath(parent))
            identity = os.path.join(folder, source.path.name)
        else:
            identity = _digest(source) or source.place
        found.setdefault(identity, source)
    return found


def _copies(training: Sequence[Source], held_out: Sequence[Source]) -> tuple[list[tuple[str, str]], bool]:
    """Places of files with equal contents, and whether all were compared. Only files of equal size are read."""
    if max(len(training), len(held_out)) > MOST_FILES:
        return [], False
    sizes = {size for source in held_out if (size := _size(source))}
    read, complete = 0, True
    by_size = {size for source in training if (size := _size(source)) in sizes}
    digests: dict[str, Source] = {}
    found: list[tuple[str, str]] = []
    for side, sources in enumerate((training, held_out)):
        for source in sources:
            size = _size(source)
            if size not in by_size:
                continue
            read += size or 0
            if read > MOST_BYTES:
                complete = False
                break
            digest = _digest(source)
            if digest is None:
                continue
            if side == 0:
                digests.setdefault(digest, source)
            elif digest in digests:
                found.append((digests[digest].place, source.place))
    return found, complete


def _size(source: Source) -> int | None:
    """Bytes of an image or a video; None if it is no file and holds none."""
    if source.path is None:
        held = _held(source)
        return None if held is None else len(held)
    try:
        return source.path.stat().st_size if source.path.is_file() else None
    except OSError:
        return None


def _digest(source: Source) -> str | None:
    """A hash of the content; None where it cannot be read."""
    try:
        content = source.path.read_bytes() if source.path is not None else _held(source)
    except OSError:
        return None
    return None if content is None else hashlib.blake2b(content, digest_size=16).hexdigest()


def _held(source: Source) -> bytes | None:
    """The content of an image, or of the frames of a video, that a record holds itself."""
    try:
        if isinstance(source, VideoSource):
            return b"".join(frame.load() for frame in source.frames)
        return source.load()
    except BrokenRecordError:
        return None
