"""Where the videos of a data set lie."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from dataset.formats.annotations import Row
from dataset.media.video import LIST_SUFFIX, VideoSource, video_source
from dataset.records.schema import BrokenRecordError
from utils.suffixes import VIDEO_SUFFIXES

NUMBERED = ("video{}", "vid{}", "video_{}", "{}")
"""How files of MSR-VTT and MSVD are called by their number: the official ones, those of a mapping file, the released lists of
frames."""


class Videos:
    """The videos of a data set, by their path or by their id; each is looked for once.

    Args:
        folder: what paths start from.
        names: file names without their suffix by id, where they differ (MSVD).
    """

    def __init__(self, folder: Path, names: Mapping[str, str] | None = None):
        self.folder, self.names = folder, names or {}
        self._found: dict[tuple[str, ...], Path | None] = {}

    def of_row(self, row: Row) -> tuple[str, VideoSource]:
        """The id and the video of a row: under ``video``, a path or a list of images, or under ``video_id``.

        Raises:
            BrokenRecordError: "missing key", "wrong type" or "missing video".
        """
        value, identity = row.values.get("video"), row.values.get("video_id", row.values.get("image_id"))
        if identity is not None and not isinstance(identity, str | int):
            raise BrokenRecordError(
                "wrong type", row.location, f"video_id is {identity!r:.80}, neither a text nor a number"
            )
        if isinstance(value, str):
            # A folder of lists made of the files stands for theirs.
            path = self._find((value, os.path.splitext(value)[0] + LIST_SUFFIX))
            if path is None:
                raise self._missing(value, row.location)
            return str(value if identity is None else identity), VideoSource(row.location, path=path)
        if value is not None:
            return str(row.location if identity is None else identity), video_source(
                value, "video", row.location, self.folder
            )
        if identity is None:
            known = ", ".join(sorted(row.values)) or "none"
            raise BrokenRecordError("missing key", row.location, f"no 'video' or 'video_id'; keys: {known[:200]}")
        return str(identity), VideoSource(row.location, path=self.by_id(identity, row.location))

    def by_id(self, identity: str | int, location: str) -> Path:
        """The video file, list of frames or folder of a video that is known by a name or a number.

        Raises:
            BrokenRecordError: "missing video".
        """
        text = str(identity)
        digits = text.removeprefix("video_").removeprefix("video").removeprefix("vid")
        stems = [text, *(form.format(digits) for form in NUMBERED)] if digits.isdigit() else [text]
        stems = [self.names[stem] for stem in stems if stem in self.names] or stems
        endings = (*VIDEO_SUFFIXES, LIST_SUFFIX, "")
        path = self._find(tuple(stem + ending for stem in dict.fromkeys(stems) for ending in endings))
        if path is None:
            raise self._missing(f"{stems[0]} with any of {', '.join(endings[:-1])}", location)
        return path

    def _find(self, names: tuple[str, ...]) -> Path | None:
        """The first of ``names`` that is there. They are the key: a path "7" and an id 7 have different ones."""
        if names not in self._found:
            there = (self.folder / name for name in names)
            self._found[names] = next((path for path in there if _exists(path)), None)
        return self._found[names]

    def _missing(self, what: str, location: str) -> BrokenRecordError:
        return BrokenRecordError("missing video", location, f"{self.folder} has no {what[:200]}")


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # longer than a name may be, or none at all
        return False
