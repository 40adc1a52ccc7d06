"""Finds the video files of a data set."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from dataset.broken import BrokenRecordError
from dataset.formats.annotations import Row
from dataset.media.sources import VideoSource, video_source
from dataset.media.video import LIST_SUFFIX
from utils.suffixes import VIDEO_SUFFIXES

NUMBERED = ("video{}", "vid{}", "video_{}", "{}")
"""File names of MSR-VTT and MSVD by number: official names, names in a mapping file, and names of the authors' lists of
frames."""


class Videos:
    """The videos of a data set, by path or by id. The file system is queried once for each video.

    Args:
        folder: folder that relative paths start from.
        names: file names without suffix by id, if they differ from the ids (MSVD).
    """

    def __init__(self, folder: Path, names: Mapping[str, str] | None = None):
        self.folder, self.names = folder, names or {}
        self._found: dict[tuple[str, ...], Path | None] = {}

    def of_row(self, row: Row) -> tuple[str, VideoSource]:
        """Returns the id and the video of a row. The row has ``video``, a path or a list of images, or ``video_id``.

        Raises:
            BrokenRecordError: "missing key", "wrong type" or "missing video".
        """
        value, identity = row.values.get("video"), row.values.get("video_id", row.values.get("image_id"))
        if identity is not None and not isinstance(identity, str | int):
            raise BrokenRecordError("wrong type", f"video_id is {identity!r:.80}, neither a text nor a number")
        if isinstance(value, str):
            # The folder may have lists of frames that were extracted from the video files.
            path = self._find((value, os.path.splitext(value)[0] + LIST_SUFFIX))
            if path is None:
                raise self._missing(value)
            return str(value if identity is None else identity), VideoSource(row.location, path=path)
        if value is not None:
            return str(row.location if identity is None else identity), video_source(
                value, "video", row.location, self.folder
            )
        if identity is None:
            known = ", ".join(sorted(row.values)) or "none"
            raise BrokenRecordError("missing key", f"no 'video' or 'video_id'; keys: {known[:200]}")
        return str(identity), VideoSource(row.location, path=self.by_id(identity))

    def by_id(self, identity: str | int) -> Path:
        """Returns the video file, list of frames or folder of a video by its id, a name or a number.

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
            raise self._missing(f"{stems[0]} with any of {', '.join(endings[:-1])}")
        return path

    def _find(self, names: tuple[str, ...]) -> Path | None:
        """Returns the first of ``names`` that exists. The cache key is the list of names, because a path "7" and an id 7 have
        different lists."""
        if names not in self._found:
            paths = (self.folder / name for name in names)
            # Path.exists raises an error for a name that is too long.
            self._found[names] = next((path for path in paths if os.path.exists(path)), None)
        return self._found[names]

    def _missing(self, what: str) -> BrokenRecordError:
        return BrokenRecordError("missing video", f"{self.folder} has no {what[:200]}")
