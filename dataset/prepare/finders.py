"""Finds the file of an annotated image or video, and decides whether a record may contain it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, Protocol

from dataset.image_ids import Ids, ids_in_path
from dataset.prepare.counts import Counts
from dataset.prepare.held_out import HeldOut
from dataset.prepare.raw_folder import RawFolder
from dataset.prepare.verify import Verified
from utils.suffixes import IMAGE_SUFFIXES, VIDEO_SUFFIXES

DUPLICATE = "duplicate image"
"""Reason for skipping an image with the same content as an earlier image of its data set."""


class MediaNames(NamedTuple):
    """Possible names of an image or video in a data set: its ``ids``, the ``names`` that its file may have (without the suffix
    for a video), and its ``usual`` path below the folder of official files."""

    ids: Ids
    names: Sequence[str]
    usual: str


class ImageFiles(NamedTuple):
    """Describes the image files of a data set: ``data_set``, the data set's name in ids (:mod:`dataset.image_ids`), and the
    ``pattern`` of the file names.

    If ``data_set`` is None, the images may belong to any data set. The path of a file must then end with the path in the
    annotations, and the ids are read from this path.
    """

    data_set: str | None
    pattern: re.Pattern[str]

    def have(self, path: Path) -> bool:
        """Returns True if ``path`` may be an image of the data set: its name matches the pattern, and its folder does not belong
        to another data set."""
        if not self.pattern.fullmatch(path.name) or path.suffix.lower() not in IMAGE_SUFFIXES:
            return False
        own = ids_in_path(path.as_posix())
        return self.data_set is None or not own or any(each.startswith(f"{self.data_set}:") for each in own)

    def exist_in(self, raw: RawFolder) -> bool:
        """Returns True if there is an image of the data set below the raw folders."""
        return any(self.have(path) for paths in raw.files.values() for path in paths)


ANY_IMAGES = ImageFiles(None, re.compile(r".+"))
"""Image files for annotations that may refer to the images of any data set."""


def names_of_path(path: str) -> MediaNames:
    """Returns the possible names of an image of :data:`ANY_IMAGES`, given its path in the annotations."""
    parts = [part for part in path.split("/") if part not in ("", ".", "..")]
    usual = "/".join(parts)
    return MediaNames(ids_in_path(usual), parts[-1:], usual)


class Finder(Protocol):
    """Finds the images or videos of a data set. ``missing`` lists the images or videos that do not exist;
    ``annotations_alone`` is True if none of them exists."""

    missing: list[str]

    @property
    def annotations_alone(self) -> bool: ...

    def find(self, names: MediaNames, counts: Counts, location: str) -> Path | None:
        """Returns the file of the image or video that is described at ``location``. If records must not contain it, counts the
        reason and returns None."""
        ...


@dataclass
class ImageFinder:
    """Finds the images of a data set.

    Args:
        raw: the folders of official files and images.
        files: the image files of the data set.
        held_out: images that records must not contain.
        excluded: usual paths and ids of images that are excluded because another research group lacks them.
        verified: results of decoding the images, by path.
    """

    raw: RawFolder
    files: ImageFiles
    held_out: HeldOut
    excluded: frozenset[str] = frozenset()
    verified: Mapping[Path, Verified] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list, init=False)
    """Usual paths of the images that do not exist."""
    _by_content: dict[str, Ids] = field(default_factory=dict, init=False)

    @cached_property
    def annotations_alone(self) -> bool:
        """True if no image of the data set exists. Records then contain the usual paths."""
        return not self.files.exist_in(self.raw)

    def find(self, names: MediaNames, counts: Counts, location: str) -> Path | None:
        path = self._path(names)
        if self.files.data_set is None:
            if path is not None:
                names = names._replace(ids=names.ids | ids_in_path(path.as_posix()))
            self.held_out.require_for(names.ids, names.usual)
        if (split := self.held_out.find(names.ids)) is not None:
            detail = "; ".join(filter(None, (names.usual, self.held_out.linked(names.ids))))
            counts.skip(f"held out by {split}", location, detail)
            return None
        if names.usual in self.excluded or names.ids & self.excluded:
            counts.skip("on the list of missing images", location, names.usual)
            return None
        if path is None and self.annotations_alone:
            path = self.raw.roots[0] / names.usual
        if path is None:
            counts.skip("missing image", location, names.usual)
            self.missing.append(names.usual)
            return None
        if fault := self._fault(path, names.ids):
            counts.skip(fault, location, str(path))
            return None
        return path

    def _fault(self, path: Path, ids: Ids) -> str:
        """Returns why a verified image cannot be used: it is broken, or a copy of a held-out image or of another image in the
        data set. Returns "" if it can be used."""
        result = self.verified.get(path)
        if result is None or result.fault:
            return "" if result is None else result.fault
        if (split := self._held_out_contents.get(result.content)) is not None:
            return f"held out by {split} (a copy)"
        return "" if self._by_content.setdefault(result.content, ids) == ids else DUPLICATE

    @cached_property
    def _held_out_contents(self) -> dict[str, str]:
        return held_out_contents(self.verified, self.held_out)

    def _path(self, names: MediaNames) -> Path | None:
        """Returns the file that has one of the names. Another data set may use the same number as a file name, so files in a
        folder that belongs to the right data set have priority."""
        if self.files.data_set is None:
            ending = f"/{names.usual}"
            found = (path for name in names.names for path in self.raw.files.get(name, []))
            return next((path for path in found if path.as_posix().endswith(ending)), None)
        unknown = None
        for name in names.names:
            for path in self.raw.files.get(name, []):
                own = ids_in_path(path.as_posix())
                if own & names.ids:
                    return path
                if not own and unknown is None:
                    unknown = path
        return unknown


@dataclass
class VideoFinder:
    """Finds the videos of a data set. The arguments and ``missing`` are those of :class:`ImageFinder`."""

    raw: RawFolder
    held_out: HeldOut
    excluded: frozenset[str] = frozenset()
    missing: list[str] = field(default_factory=list, init=False)
    annotations_alone: bool = field(default=False, init=False)

    def find(self, names: MediaNames, counts: Counts, location: str) -> Path | None:
        [name] = names.names
        if (split := self.held_out.find(names.ids)) is not None:
            counts.skip(f"held out by {split}", location, name)
            return None
        if name in self.excluded:
            counts.skip("on the list of missing images", location, name)
            return None
        paths = self._files.get(name, [])
        if not paths:
            counts.skip("missing video", location, name)
            self.missing.append(name)
            return None
        folder = Path(names.usual).parent.name
        return next((path for path in paths if path.parent.name == folder), paths[0])

    @cached_property
    def _files(self) -> dict[str, list[Path]]:
        """The video files by name without suffix."""
        found: dict[str, list[Path]] = {}
        for name, paths in self.raw.files.items():
            stem, _, suffix = name.rpartition(".")
            if f".{suffix.lower()}" in VIDEO_SUFFIXES:
                found.setdefault(stem, []).extend(paths)
        return found


def held_out_contents(verified: Mapping[Path, Verified], held_out: HeldOut) -> dict[str, str]:
    """Maps the content hash of each verified held-out image to its split. Held-out images are recognised by the ids in their
    paths."""
    splits = {path: held_out.find(ids_in_path(path.as_posix())) for path in verified}
    return {
        verified[path].content: split for path, split in splits.items() if split is not None and verified[path].content
    }
