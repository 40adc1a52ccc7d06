"""User options for preparing data sets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from dataset.config import VideoReadingConfig
from dataset.prepare.filters import Filters
from dataset.prepare.frame_making import TIME_LIMIT_S, FrameMaking
from utils.flags import PositiveReal, read_by, whole_number


@dataclass(frozen=True)
class VideoOptions:
    """Options for converting videos to records.

    Args:
        short_side: maximum length of a frame's shorter side in pixels; 256 is enough for pre-training at 224.
        frames_per_second: number of frames to keep per second of video; the paper keeps one (section 3.2).
        clips: maximum number of neighbouring clips in a record.
        words: number of words in a clip's text, if clips are built from words with times.
    """

    short_side: Annotated[int, read_by(whole_number(16, 4096))] = 256
    frames_per_second: PositiveReal = 1.0
    clips: Annotated[int, read_by(whole_number(1, 10_000))] = 16
    words: Annotated[int, read_by(whole_number(1, 1000))] = 24

    def making(self) -> FrameMaking:
        """Returns the settings for extracting frames."""
        reading = VideoReadingConfig(frames_per_second=self.frames_per_second, time_limit_s=TIME_LIMIT_S)
        return FrameMaking(reading, short_side=self.short_side)


@dataclass(frozen=True)
class Options:
    """User options for preparing one data set.

    Args:
        raw: folder of the official files and images.
        out: folder in which the folders of records are built.
        held_out: additional folders to search for the files of downstream splits.
        without: names of downstream splits whose images are not excluded.
        missing: images that another research group could not download, and that are therefore excluded, as returned by
            :func:`~dataset.prepare.missing.read_missing`.
        verify: whether to decode every image.
        overwrite: whether to rebuild existing folders.
        workers: number of worker processes.
        report: function that is called with each line to print.
        filters: filters for LAION.
        videos: options for converting videos to records.
        ray: address of a Ray cluster for LAION; if None, processes on this machine are used.
        min_score: minimum margin score of WikiMatrix translations; the default is the threshold of its authors.
        max_broken: maximum fraction of malformed entries. If more are malformed, no folder is built.
    """

    raw: Path
    out: Path
    held_out: tuple[Path, ...]
    without: tuple[str, ...]
    missing: frozenset[str]
    verify: bool
    overwrite: bool
    workers: int
    report: Callable[[str], object]
    filters: Filters = field(default_factory=Filters)
    videos: VideoOptions = field(default_factory=VideoOptions)
    ray: str | None = None
    min_score: float = 1.04
    max_broken: float = 0.01
