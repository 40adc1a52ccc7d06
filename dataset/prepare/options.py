"""The choices of a user when preparing data sets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from dataset.media.video import VideoReadingConfig
from dataset.prepare.filters import Filters
from dataset.prepare.frame_making import FrameMaking


@dataclass(frozen=True)
class VideoOptions:
    """How videos become records.

    Args:
        short_side: maximum length of a frame's shorter side in pixels; 256 is enough for pre-training at 224.
        frames_per_second: number of frames that are kept of each second (section 3.2: one).
        clips: maximum number of neighbouring clips in a record.
        words: number of words in the text of a clip, if clips are made from words with times.
        time_limit_s: a video that takes longer to read, in seconds, is broken.
    """

    short_side: int = 256
    frames_per_second: float = 1.0
    clips: int = 16
    words: int = 24
    time_limit_s: float = 600.0

    def making(self) -> FrameMaking:
        """Returns how frames are made."""
        reading = VideoReadingConfig(frames_per_second=self.frames_per_second, time_limit_s=self.time_limit_s)
        return FrameMaking(reading, short_side=self.short_side)


@dataclass(frozen=True)
class Options:
    """Choices of a user for one preparation.

    Args:
        raw: folder of the official files and images.
        out: folder in which the folders of records are made.
        held_out: further folders in which the files of downstream splits are looked for.
        without: names of downstream splits whose images are kept.
        missing: images that others miss and that are excluded here too, as returned by
            :func:`~dataset.prepare.missing.read_missing`.
        verify: decode every image.
        overwrite: make existing folders again.
        workers: number of worker processes.
        tell: called with each line for the user.
        filters: of LAION.
        videos: how videos become records.
        ray: address of a Ray cluster for LAION; None: use processes of this machine.
        min_score: minimum margin score of translations of WikiMatrix; the default is the value of its authors.
        max_broken: maximum share of entries that have the wrong form; beyond it, nothing is made.
    """

    raw: Path
    out: Path
    held_out: tuple[Path, ...]
    without: tuple[str, ...]
    missing: frozenset[str]
    verify: bool
    overwrite: bool
    workers: int
    tell: Callable[[str], object]
    filters: Filters = field(default_factory=Filters)
    videos: VideoOptions = field(default_factory=VideoOptions)
    ray: str | None = None
    min_score: float = 1.04
    max_broken: float = 0.01
