"""Finds images or videos that the training data and a held-out split share. Shared images inflate the metrics of the held-out
split.

:func:`shared_images` compares paths and then bytes, so it detects the same file under several paths (links, copies with another
name, images in shards). It also detects photographs that two public data sets share, by their ids (:mod:`dataset.image_ids`).
:mod:`dataset.look_alikes` detects images that were recompressed, resized or cropped.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from dataset.broken import BrokenRecordError
from dataset.image_ids import Ids, guessed_ids_in_path, ids_in_path, ids_of_record
from dataset.media.sources import ImageSource, VideoSource

Source = ImageSource | VideoSource
How = Literal["id", "path", "content", "look"]
TooMany = Literal["", "files", "bytes"]

MAX_FILES = 20_000
"""Maximum number of training files, and of held-out files, whose contents are compared. With more files, only ids and paths are
compared."""

MAX_BYTES = 300_000_000
"""Maximum number of bytes to read for comparing contents. After that, files are only compared by id and path."""


class KnownImage(NamedTuple):
    """An image or a video with the ids in its record and its path.

    Attributes:
        ids: the ids. An image with ids counts as compared by id.
        guessed: ids that only a file name suggests. They can match other ids, but the image does not count as compared by id.
    """

    source: Source
    ids: Ids
    guessed: Ids = frozenset()

    @property
    def possible_ids(self) -> Ids:
        return self.ids | self.guessed


class NotCompared(NamedTuple):
    """Training records and held-out images that could not be compared with each other.

    Two images are compared if both have ids, or if the contents of both were read.

    Attributes:
        training: number of these training records.
        records: number of all training records.
        held_out: number of these held-out images.
        reason: why their contents were not compared.
    """

    training: int
    records: int
    held_out: int
    reason: str


class SharedImage(NamedTuple):
    """A held-out image that is also in the training data: its location in the held-out split and in the training data, and how
    the match was found."""

    held_out: str
    training: str
    how: How


@dataclass(frozen=True)
class SharedImages:
    """Images of a held-out split that are also in the training data.

    Attributes:
        pairs: each shared image once, with the first training record that contains it.
        held_out: number of distinct images in the split.
        too_many: "files" or "bytes" if there were too many of them to compare all contents; otherwise "".
        not_compared: the training records and held-out images that were not compared; None if the comparison is complete.
        sets: data sets that the ids in the split belong to.
        training_sets: number of training records whose ids belong to each combination of data sets.
    """

    pairs: tuple[SharedImage, ...]
    held_out: int
    too_many: TooMany
    not_compared: NotCompared | None
    sets: frozenset[str]
    training_sets: Mapping[frozenset[str], int]

    @property
    def limit_reached(self) -> str:
        """A clause that names the limit because of which not all contents were compared; "" if no limit was reached."""
        return f"; too many {self.too_many} to compare all contents" if self.too_many else ""

    @property
    def shared(self) -> int:
        return len(self.pairs)

    def count(self, how: How) -> int:
        """Returns the number of images that were matched by the given method."""
        return sum(pair.how == how for pair in self.pairs)


def known_image(source: Source, values: Mapping[str, Any] | None = None) -> KnownImage:
    """Returns an image with the ids in its path and in the ``values`` of its record."""
    path = None if source.path is None else source.path.as_posix()
    guessed = guessed_ids_in_path(path or "")
    ids = (ids_in_path(path or "") - guessed) | ids_of_record(values or {}, None)
    return KnownImage(source, ids, guessed - ids)


def shared_images(training: Iterable[Source | KnownImage], held_out: Iterable[Source | KnownImage]) -> SharedImages:
    """Finds the images or videos of one held-out split that are also in ``training``, like :func:`shared_with_splits`."""
    return shared_with_splits(training, {"": held_out})[""]


def shared_with_splits(
    training: Iterable[Source | KnownImage],
    splits: Mapping[str, Iterable[Source | KnownImage]],
    all_ids: Callable[[Ids], Ids] = lambda ids: ids,
    on_pair: Callable[[str, SharedImage], object] = lambda split, pair: None,
) -> dict[str, SharedImages]:
    """Finds the images or videos of each split that are also in ``training``.

    They are compared by id, by path and, within the limits :data:`MAX_FILES` and :data:`MAX_BYTES`, by content. ``training`` is
    iterated once, and at most :data:`MAX_FILES` of its images are kept in memory.

    Args:
        training: training images.
        splits: held-out images by the name of their split.
        all_ids: function that adds the ids that the same photograph has in other data sets.
        on_pair: called for each match between a held-out image and a training record, with the name of the split and the match.
    """
    folders: dict[Path, str] = {}
    members = {
        name: {_identity(each.source, folders): each for each in map(_known, split)} for name, split in splits.items()
    }
    held_out = {identity: image for split in members.values() for identity, image in split.items()}
    by_id: dict[str, list[str]] = {}
    for identity, image in held_out.items():
        for each in all_ids(image.possible_ids):
            by_id.setdefault(each, []).append(identity)
    found: dict[str, tuple[str, How]] = {}
    training_files: dict[str, _TrainingFile] = {}
    training_sets: Counter[frozenset[str]] = Counter()

    def add(identity: str, location: str, how: How) -> None:
        found.setdefault(identity, (location, how))
        for name, split in members.items():
            if identity in split:
                on_pair(name, SharedImage(split[identity].source.location, location, how))

    for image in map(_known, training):
        own = _identity(image.source, folders)
        training_sets[_sets(image.ids)] += 1
        if own in held_out:
            add(own, image.source.location, "path")
        for identity in dict.fromkeys(each for known in sorted(image.possible_ids) for each in by_id.get(known, ())):
            if identity != own:
                add(identity, image.source.location, "id")
        if own not in training_files and len(training_files) <= MAX_FILES:
            training_files[own] = _TrainingFile.of(image.source)
        if own in training_files:
            training_files[own].records.append(_Record(image.source.location, image.possible_ids, bool(image.ids)))
    copies = _Copies(too_many="files")
    if max(len(training_files), len(held_out)) <= MAX_FILES:
        copies = _copies(training_files, held_out)
    for identity, file in copies.found:
        ids = all_ids(held_out[identity].possible_ids)
        for record in file.records:
            if not ids & record.possible_ids:
                add(identity, record.location, "content")
    records = _records_by_comparison(training_files, copies, training_sets)
    return {
        name: _shared(split, found, copies, _not_compared(records, split, copies, training_files), training_sets)
        for name, split in members.items()
    }


class _Record(NamedTuple):
    """A training record: its location, the ids that its image may have, and whether the image counts as compared by id."""

    location: str
    possible_ids: Ids
    has_ids: bool


@dataclass
class _TrainingFile:
    """A training file, with the records that use it. For an image stored inside a record, only size and
    hash are kept."""

    size: int | None
    digest: str | None
    source: Source | None
    records: list[_Record] = field(default_factory=list)

    @classmethod
    def of(cls, source: Source) -> _TrainingFile:
        if source.path is not None:
            return cls(None, None, source)
        return cls(_size(source), _digest(source), None)


def _sets(ids: Ids) -> frozenset[str]:
    """Returns the data sets of the ids."""
    return frozenset(each.partition(":")[0] for each in ids)


@dataclass
class _Copies:
    """The result of comparing contents.

    Attributes:
        found: identities of held-out images, each with a training file that has the same content under a different identity.
        too_many: "files" or "bytes" if there were too many of them to compare all contents; otherwise "".
        unread_training: identities of the training files whose content could not be read.
        unread_held_out: identities of the held-out images whose content could not be read.
    """

    found: list[tuple[str, _TrainingFile]] = field(default_factory=list)
    too_many: TooMany = ""
    unread_training: set[str] = field(default_factory=set)
    unread_held_out: set[str] = field(default_factory=set)


def _records_by_comparison(
    files: Mapping[str, _TrainingFile], copies: _Copies, training_sets: Mapping[frozenset[str], int]
) -> Counter[tuple[bool, bool]]:
    """Returns the number of training records by whether they have ids and whether their content was read."""
    records: Counter[tuple[bool, bool]] = Counter()
    if copies.too_many:
        for sets, count in training_sets.items():
            records[bool(sets), False] += count
        return records
    for identity, file in files.items():
        records.update((record.has_ids, identity not in copies.unread_training) for record in file.records)
    return records


def _not_compared(
    records: Mapping[tuple[bool, bool], int],
    split: Mapping[str, KnownImage],
    copies: _Copies,
    files: Mapping[str, _TrainingFile],
) -> NotCompared | None:
    """Returns the training records and the images of a split that were compared neither by id nor by content."""
    images = Counter(
        (bool(image.ids), not copies.too_many and identity not in copies.unread_held_out)
        for identity, image in split.items()
    )
    missed = [
        (one, other) for one in records for other in images if not (one[0] and other[0]) and not (one[1] and other[1])
    ]
    if not missed:
        return None
    if copies.too_many:
        reason = f"there are too many {copies.too_many} to compare their contents"
    else:
        unread = [file.records[0].location for identity, file in files.items() if identity in copies.unread_training]
        unread += [image.source.location for each, image in split.items() if each in copies.unread_held_out]
        reason = f"some images cannot be read, the first: {unread[0]}"
    return NotCompared(
        sum(records[one] for one in {one for one, _ in missed}),
        sum(records.values()),
        sum(images[other] for other in {other for _, other in missed}),
        reason,
    )


def _shared(
    split: Mapping[str, KnownImage],
    found: Mapping[str, tuple[str, How]],
    copies: _Copies,
    not_compared: NotCompared | None,
    training_sets: Mapping[frozenset[str], int],
) -> SharedImages:
    pairs = (SharedImage(image.source.location, *found[each]) for each, image in split.items() if each in found)
    sets = frozenset(of for image in split.values() for of in _sets(image.ids))
    return SharedImages(tuple(pairs), len(split), copies.too_many, not_compared, sets, training_sets)


def _known(image: Source | KnownImage) -> KnownImage:
    return image if isinstance(image, KnownImage) else known_image(image)


def _identity(source: Source, folders: dict[Path, str]) -> str:
    """Returns the real path of an image, or the hash of its content if the image is stored inside a record.

    Args:
        folders: cache of real paths.
    """
    if source.path is None:
        return _digest(source) or source.location
    parent = source.path.parent
    folder = folders.get(parent) or folders.setdefault(parent, os.path.realpath(parent))
    return os.path.join(folder, source.path.name)


def _copies(training: Mapping[str, _TrainingFile], held_out: Mapping[str, KnownImage]) -> _Copies:
    """Compares contents until the limit of bytes is reached. Only files of equal size are read."""
    copies = _Copies()
    sizes = {identity: _size(image.source) for identity, image in held_out.items()}
    copies.unread_held_out = {identity for identity, size in sizes.items() if not size}
    shared_sizes = set(sizes.values()) - {None, 0}
    by_digest: dict[str, list[tuple[str, _TrainingFile]]] = {}
    training_sizes: set[int] = set()
    read = 0
    for identity, file in training.items():
        size = file.size if file.source is None else _size(file.source)
        if not size:
            copies.unread_training.add(identity)
        if size is None or size not in shared_sizes:
            continue
        training_sizes.add(size)
        read += size if file.source is not None else 0
        if read > MAX_BYTES:
            copies.too_many = "bytes"
            return copies
        digest = file.digest if file.source is None else _digest(file.source)
        if digest is not None:
            by_digest.setdefault(digest, []).append((identity, file))
        else:
            copies.unread_training.add(identity)
    for identity, image in held_out.items():
        size = sizes[identity]
        if size is None or size not in training_sizes:
            continue
        read += size
        if read > MAX_BYTES:
            copies.too_many = "bytes"
            return copies
        digest = _digest(image.source)
        if digest is None:
            copies.unread_held_out.add(identity)
        copies.found += [(identity, file) for own, file in by_digest.get(digest or "", ()) if own != identity]
    return copies


def _size(source: Source) -> int | None:
    """Returns the size of an image or a video in bytes, or None if it has no readable content."""
    if source.path is None:
        held = _embedded(source)
        return None if held is None else len(held)
    try:
        return source.path.stat().st_size if source.path.is_file() else None
    except OSError:
        return None


def _digest(source: Source) -> str | None:
    """Returns a hash of the content, or None if it cannot be read."""
    try:
        content = source.path.read_bytes() if source.path is not None else _embedded(source)
    except OSError:
        return None
    return None if content is None else hashlib.blake2b(content, digest_size=16).hexdigest()


def _embedded(source: Source) -> bytes | None:
    """Returns the content of an image, or of the frames of a video, if it is stored inside a record; otherwise None."""
    try:
        if isinstance(source, VideoSource):
            return b"".join(frame.load() for frame in source.frames)
        return source.load()
    except BrokenRecordError:
        return None
