"""Where the image of an official annotation lies, and whether a record may have it."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import NamedTuple

from dataset.image_ids import Ids, ids_in_path
from dataset.prepare.counts import Counts
from dataset.prepare.held_out import HeldOut
from dataset.prepare.raw_folder import RawFolder
from dataset.prepare.verify import Verified
from utils.suffixes import IMAGE_SUFFIXES

DUPLICATE = "duplicate image"
"""Reason for which an image is left out whose content an earlier one of its set has."""


class ImageNames(NamedTuple):
    """How an image of a set may be called: ``ids``, the ``names`` of its file, and the ``usual`` path below the raw folder."""

    ids: Ids
    names: Sequence[str]
    usual: str


class SetFiles(NamedTuple):
    """The image files of a set: ``of``, the set in an id (:mod:`dataset.image_ids`), and the ``pattern`` of their names."""

    of: str
    pattern: re.Pattern[str]

    def have(self, path: Path) -> bool:
        """Whether it may be an image of the set: its name fits, and its folder is not another set's."""
        if not self.pattern.fullmatch(path.name) or path.suffix.lower() not in IMAGE_SUFFIXES:
            return False
        own = ids_in_path(path.as_posix())
        return not own or any(each.startswith(f"{self.of}:") for each in own)


@dataclass
class ImageFinder:
    """Decides about each image of a set, and gives the path that its record has.

    Args:
        raw: the folders of official files and images.
        folder: of the records; their image paths start there.
        set_files: the set's image files.
        held_out: images that no record may have.
        excluded: usual paths and ids of images that are left out because others miss them.
        verified: results by path, of images that were decoded.
    """

    raw: RawFolder
    folder: Path
    set_files: SetFiles
    held_out: HeldOut
    excluded: frozenset[str] = frozenset()
    verified: Mapping[Path, Verified] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list, init=False)
    """Usual paths of the images that are not there."""
    _by_content: dict[str, Ids] = field(default_factory=dict, init=False)

    @cached_property
    def annotations_alone(self) -> bool:
        """No image of the set is there: then records name where they usually lie."""
        return not any(self.set_files.have(path) for paths in self.raw.files.values() for path in paths)

    @cached_property
    def _relative(self) -> Callable[[str], str]:
        """Gives the path of a folder as it is seen from the records, where ".." leads out of the folder that a link points to."""
        return lru_cache(partial(os.path.relpath, start=os.path.realpath(self.folder)))

    def find(self, image: ImageNames, counts: Counts, place: str) -> str | None:
        """The path of an image as records have it; None, and counted, if no record may have it."""
        if (split := self.held_out.find(image.ids)) is not None:
            detail = "; ".join(filter(None, (image.usual, self.held_out.linked(image.ids))))
            counts.leave_out(f"held out by {split}", place, detail)
            return None
        if image.usual in self.excluded or image.ids & self.excluded:
            counts.leave_out("on the list of missing images", place, image.usual)
            return None
        path = self._path(image)
        if path is None:
            if self.annotations_alone:
                path = self.raw.roots[0] / image.usual
            else:
                counts.leave_out("missing image", place, image.usual)
                self.missing.append(image.usual)
                return None
        if fault := self._fault(path, image.ids):
            counts.leave_out(fault, place, str(path))
            return None
        folder, name = os.path.split(path)
        return os.path.join(self._relative(folder), name)

    def _fault(self, path: Path, ids: Ids) -> str:
        """The reason for which a verified image cannot be used; a copy of a held-out image, or of another one of the set, is such
        a reason."""
        result = self.verified.get(path)
        if result is None or result.fault:
            return "" if result is None else result.fault
        if (split := self._held_out_contents.get(result.content)) is not None:
            return f"held out by {split} (a copy)"
        return "" if self._by_content.setdefault(result.content, ids) == ids else DUPLICATE

    @cached_property
    def _held_out_contents(self) -> dict[str, str]:
        return held_out_contents(self.verified, self.held_out)

    def _path(self, image: ImageNames) -> Path | None:
        """A number may be the name of another set's image too: one whose folder is known for its set goes first."""
        unknown = None
        for name in image.names:
            for path in self.raw.files.get(name, []):
                own = ids_in_path(path.as_posix())
                if own & image.ids:
                    return path
                if not own and unknown is None:
                    unknown = path
        return unknown


def held_out_contents(verified: Mapping[Path, Verified], held_out: HeldOut) -> dict[str, str]:
    """The splits of held-out images by content, as far as these images were verified and their paths tell their ids."""
    splits = {path: held_out.find(ids_in_path(path.as_posix())) for path in verified}
    return {
        verified[path].content: split for path, split in splits.items() if split is not None and verified[path].content
    }
