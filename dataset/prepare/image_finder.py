"""Where the image of an official annotation lies, and whether a record may have it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from dataset.image_ids import Ids, ids_in_path
from dataset.prepare.counts import Counts
from dataset.prepare.held_out import HeldOut
from dataset.prepare.raw_folder import RawFolder

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


class ImageNames(NamedTuple):
    """How an image of a set may be called: ``ids``, the ``names`` of its file, and the ``usual`` path below the raw folder."""

    ids: Ids
    names: Sequence[str]
    usual: str


@dataclass
class ImageFinder:
    """Decides about each image of a set, and gives the path that its record has.

    Args:
        raw: the folders of official files and images.
        folder: of the records; their image paths start there.
        pattern: of the file names of the set's images.
        held_out: images that no record may have.
        excluded: names of images that are left out because others miss them.
        unusable: reasons by path, of images that were verified and cannot be used.
    """

    raw: RawFolder
    folder: Path
    pattern: re.Pattern[str]
    held_out: HeldOut
    excluded: frozenset[str] = frozenset()
    unusable: Mapping[Path, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list, init=False)
    """Usual paths of the images that are not there."""
    _parents: dict[Path, str] = field(default_factory=dict, init=False)

    @cached_property
    def annotations_alone(self) -> bool:
        """No image of the set is there: then records name where they usually lie."""
        return not any(
            self.pattern.fullmatch(name) and path.suffix.lower() in IMAGE_SUFFIXES
            for name, paths in self.raw.files.items()
            for path in paths[:1]
        )

    def find(self, image: ImageNames, counts: Counts, place: str) -> str | None:
        """The path of an image as records have it; None, and counted, if no record may have it."""
        if (split := self.held_out.find(image.ids)) is not None:
            counts.leave_out(f"held out by {split}", place, image.usual)
            return None
        if image.usual in self.excluded:
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
        if path in self.unusable:
            counts.leave_out(self.unusable[path], place, str(path))
            return None
        return self._relative(path)

    def _relative(self, path: Path) -> str:
        """The path from the folder of records. Both are real ones: the system takes ``..`` of a link from its target."""
        parent = self._parents.get(path.parent)
        if parent is None:
            real = os.path.relpath(os.path.realpath(path.parent), os.path.realpath(self.folder))
            parent = self._parents[path.parent] = real
        return os.path.join(parent, path.name)

    def _path(self, image: ImageNames) -> Path | None:
        for name in image.names:
            for path in self.raw.files.get(name, []):
                own = ids_in_path(path.as_posix())
                if not own or own & image.ids:  # a number may be the name of another set's image too
                    return path
        return None
