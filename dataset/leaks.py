"""Images or videos that training and a held-out split share: then the held-out numbers are too good.

:func:`shared_images` finds the same file under one path or several (links, copies under another name, images in shards): equal
paths, then equal bytes. It finds a photograph that two public data sets have by their ids (:mod:`dataset.image_ids`). It does
not find other images that were encoded anew, resized or cropped.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from dataset.image_ids import Ids, ids_in_path, ids_of_record
from dataset.media.video import VideoSource
from dataset.records.broken import BrokenRecordError
from dataset.records.schema import ImageSource

Source = ImageSource | VideoSource
How = Literal["id", "path", "content"]

MOST_FILES = 20_000
"""Images of a side whose contents are compared; of more, only ids and paths are."""

MOST_BYTES = 300_000_000
"""Bytes that are read to compare contents; candidates beyond them are compared by id and path alone."""


class KnownImage(NamedTuple):
    """An image, or a video, with the ids that its record gives it."""

    source: Source
    ids: Ids


class SharedImage(NamedTuple):
    """An image of a held-out split that training has too: its places there and in training, and how it was found."""

    held_out: str
    training: str
    how: How


@dataclass(frozen=True)
class SharedImages:
    """Images of a held-out split that training has too.

    ``pairs``: each of them once; ``held_out``: how many different images the split has. ``contents_compared``: False where there
    were too many files, or bytes.
    """

    pairs: tuple[SharedImage, ...]
    held_out: int
    contents_compared: bool

    @property
    def shared(self) -> int:
        return len(self.pairs)

    def count(self, how: How) -> int:
        """Images that were found by id, by path or by content."""
        return sum(pair.how == how for pair in self.pairs)


def known_image(source: Source, values: Mapping[str, Any] | None = None) -> KnownImage:
    """An image with the ids that are in its path, and in the ``values`` of its record."""
    path = None if source.path is None else source.path.as_posix()
    return KnownImage(source, ids_in_path(path or "") if values is None else ids_of_record(values, path))


def shared_images(training: Iterable[Source | KnownImage], held_out: Iterable[Source | KnownImage]) -> SharedImages:
    """The images or videos of one held-out split that are also in ``training``; see :func:`shared_with_splits`."""
    return shared_with_splits(training, {"": held_out})[""]


def shared_with_splits(
    training: Iterable[Source | KnownImage], splits: Mapping[str, Iterable[Source | KnownImage]]
) -> dict[str, SharedImages]:
    """The images or videos of each split that are also in ``training``: by id, by path and, for files that are small enough to
    read (:data:`MOST_FILES`, :data:`MOST_BYTES`), by content.

    ``training`` is gone through once, and no more of it is kept than :data:`MOST_FILES`.
    """
    folders: dict[Path, str] = {}
    members = {
        name: {_identity(each.source, folders): each for each in map(_known, split)} for name, split in splits.items()
    }
    theirs = {identity: image for split in members.values() for identity, image in split.items()}
    by_id: dict[str, list[str]] = {}
    for identity, image in theirs.items():
        for each in image.ids:
            by_id.setdefault(each, []).append(identity)
    found: dict[str, tuple[str, How]] = {}
    ours: dict[str, Source] = {}
    for image in map(_known, training):
        own = _identity(image.source, folders)
        if own in theirs:
            found.setdefault(own, (image.source.place, "path"))
        for identity in (each for known in image.ids for each in by_id.get(known, ())):
            found.setdefault(identity, (image.source.place, "id"))
        if len(ours) <= MOST_FILES:
            ours.setdefault(own, image.source)
    complete = max(len(ours), len(theirs)) <= MOST_FILES
    if complete:
        others = {identity: image.source for identity, image in theirs.items() if identity not in found}
        copies, complete = _copies(list(ours.values()), others)
        found |= copies
    return {name: _shared(split, found, complete) for name, split in members.items()}


def _shared(split: Mapping[str, KnownImage], found: Mapping[str, tuple[str, How]], complete: bool) -> SharedImages:
    pairs = (SharedImage(image.source.place, *found[each]) for each, image in split.items() if each in found)
    return SharedImages(tuple(pairs), len(split), complete)


def _known(image: Source | KnownImage) -> KnownImage:
    return image if isinstance(image, KnownImage) else known_image(image)


def _identity(source: Source, folders: dict[Path, str]) -> str:
    """The real path of an image, or if a record holds the image itself, its content. ``folders``: real paths that are known."""
    if source.path is None:
        return _digest(source) or source.place
    parent = source.path.parent
    folder = folders.get(parent) or folders.setdefault(parent, os.path.realpath(parent))
    return os.path.join(folder, source.path.name)


def _copies(training: Sequence[Source], held_out: Mapping[str, Source]) -> tuple[dict[str, tuple[str, How]], bool]:
    """Images with equal contents by their identity, and whether all were compared. Only files of equal size are read."""
    sizes = {size for source in held_out.values() if (size := _size(source))}
    by_size = {size: None for source in training if (size := _size(source)) in sizes}
    candidates = [("", source) for source in training], list(held_out.items())
    read = 0
    digests: dict[str, Source] = {}
    found: dict[str, tuple[str, How]] = {}
    for side, (identity, source) in _numbered(candidates):
        size = _size(source)
        if size not in by_size:
            continue
        read += size or 0
        if read > MOST_BYTES:
            return found, False
        digest = _digest(source)
        if digest is not None and side == 0:
            digests.setdefault(digest, source)
        elif digest in digests:
            found[identity] = digests[digest].place, "content"
    return found, True


def _numbered(sides: Iterable[Iterable[tuple[str, Source]]]) -> Iterator[tuple[int, tuple[str, Source]]]:
    for number, side in enumerate(sides):
        for each in side:
            yield number, each


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
