"""Videos cut into clips by their times, and their frames, once: what the sets of videos have in common."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from dataset.image_ids import Ids
from dataset.media.video import VideoReadingConfig, VideoSource
from dataset.prepare.building import Job
from dataset.prepare.cleaning import cleaned_text
from dataset.prepare.counts import Counts
from dataset.prepare.frame_making import FrameMaking
from dataset.prepare.held_out import HeldOut
from dataset.prepare.raw_folder import RawFolder
from dataset.records.broken import BrokenRecordError
from utils.suffixes import VIDEO_SUFFIXES

_TAG = re.compile(r"\[[^\[\]]{1,40}\]")
"""``[Music]`` and the like, which stand in transcripts where nobody speaks."""


@dataclass(frozen=True)
class VideoOptions:
    """How videos become records.

    Args:
        short_side: of a frame in pixels, at most; 256 is enough for pre-training at 224.
        frames_per_second: frames that are kept of each second (section 3.2: one).
        clips: neighbouring clips of a record, at most.
        words: of a clip's text, where clips are cut from words with times.
        time_limit_s: a video that takes longer to read is broken.
    """

    short_side: int = 256
    frames_per_second: float = 1.0
    clips: int = 16
    words: int = 24
    time_limit_s: float = 600.0

    def making(self) -> FrameMaking:
        """How their frames are made."""
        reading = VideoReadingConfig(frames_per_second=self.frames_per_second, time_limit_s=self.time_limit_s)
        return FrameMaking(reading, short_side=self.short_side)


class Clip(NamedTuple):
    """A clip: its text, and the times of its ``start`` and ``end`` in seconds."""

    start: float
    end: float
    text: str


class Video(NamedTuple):
    """A video on its way to a worker. ``clips`` in their order; None: the whole video is one, with the text ``whole``."""

    path: Path
    place: str
    values: Mapping[str, Any]
    clips: list[Clip] | None = None
    whole: str = ""


@dataclass
class VideoFinder:
    """Finds the files of a set's videos.

    ``missing``: names of those that are not there.
    """

    raw: RawFolder
    held_out: HeldOut
    excluded: frozenset[str]
    missing: list[str] = field(default_factory=list, init=False)
    annotations_alone: bool = field(default=False, init=False)
    _by_stem: dict[str, list[Path]] | None = field(default=None, init=False)

    def find(self, name: str, ids: Ids, counts: Counts, place: str, folder: str = "") -> Path | None:
        """The file of the video ``name``, of those in ``folder`` first; None, and counted, if no record may have it."""
        if (split := self.held_out.find(ids)) is not None:
            counts.leave_out(f"held out by {split}", place, name)
            return None
        if name in self.excluded:
            counts.leave_out("on the list of missing images", place, name)
            return None
        paths = self._files.get(name, [])
        if not paths:
            counts.leave_out("missing video", place, name)
            self.missing.append(name)
            return None
        return next((path for path in paths if path.parent.name == folder), paths[0])

    @property
    def _files(self) -> dict[str, list[Path]]:
        if self._by_stem is None:
            self._by_stem = {}
            for name, paths in self.raw.files.items():
                stem, _, suffix = name.rpartition(".")
                if f".{suffix.lower()}" in VIDEO_SUFFIXES:
                    self._by_stem.setdefault(stem, []).extend(paths)
        return self._by_stem


def job_of(video: Video | None, counts: Counts) -> Job:
    """The job of a video; None: of one that was left out, which only counts."""
    counts.read["videos"] += 1
    return Job([video] if video is not None else [], 1, counts, video.place if video is not None else "")


def speech_clips(clips: Sequence[Clip], counts: Counts, place: str) -> list[Clip]:
    """The clips in which somebody speaks, texts cleaned, in the order of their times.

    Captions of transcripts may overlap, as raw ones do that scroll: a clip ends where the next one begins. One whose
    times are no numbers, or that ends before it begins, is left out.
    """
    found, timed = [], []
    for clip in clips:
        if math.isfinite(clip.start) and math.isfinite(clip.end) and clip.start <= clip.end:
            timed.append(clip)
        else:
            counts.read["clips"] += 1
            counts.leave_out("clip with wrong times", place, f"{clip.start:g} to {clip.end:g} s")
    ordered = sorted(timed, key=lambda clip: clip.start)
    for index, clip in enumerate(ordered):
        counts.read["clips"] += 1
        begins = next((other.start for other in ordered[index + 1 :] if other.start > clip.start), clip.end)
        if begins < clip.end:
            counts.mend("clip cut where the next begins", place)
        spoken = _TAG.sub(" ", clip.text)
        if not spoken.strip():
            counts.leave_out("clip without speech", place, repr(clip.text[:40]))
        elif (text := cleaned_text(spoken, counts, place)) is not None:
            found.append(Clip(clip.start, min(clip.end, begins), text))
    return found


def video_records(options: VideoOptions, items: list[Video], counts: Counts) -> Iterator[dict[str, Any]]:
    """Records with frames, in the form of the released ones: ``video_frames``, ``text``, ``is_continuous``."""
    for video in items:
        try:
            yield from _records(options, video, counts)
        except BrokenRecordError as error:
            counts.leave_out(error.kind, video.place, error.message)


def _records(options: VideoOptions, video: Video, counts: Counts) -> Iterator[dict[str, Any]]:
    if video.clips is None:
        text = cleaned_text(video.whole, counts, video.place)
        if text is not None:
            frames = options.making().frames(VideoSource(video.place, path=video.path))
            _count(counts, 1, len(frames))
            yield {**video.values, "video_frames": frames, "text": text}
        return
    clips = speech_clips(video.clips, counts, video.place)
    if not clips:
        counts.leave_out("video without speech", video.place)
        return
    cut = cut_frames(video, clips, options)
    kept = [(clip, frames) for clip, frames in zip(clips, cut, strict=True) if frames]
    for clip in (clip for clip, frames in zip(clips, cut, strict=True) if not frames):
        counts.leave_out("clip outside its video", video.place, f"{clip.start:g} to {clip.end:g} s")
    for start in range(0, len(kept), options.clips):
        part = kept[start : start + options.clips]
        _count(counts, len(part), sum(len(frames) for _, frames in part))
        yield {
            **video.values,
            "video_frames": [frames for _, frames in part],
            "text": [clip.text for clip, _ in part],
            "is_continuous": True,
        }
    counts.made["videos"] += bool(kept)


def _count(counts: Counts, clips: int, frames: int) -> None:
    counts.made["clips"] += clips
    counts.made["frames"] += frames


def cut_frames(video: Video, clips: Sequence[Clip], options: VideoOptions) -> list[list[str]]:
    """The frames of each clip, of those at whole multiples of 1 / ``frames_per_second``.

    A clip between two of them has the one before its middle; one outside the video has none. The video is decoded once.
    """
    chosen: list[range] = []

    def choose(count: int) -> list[int]:
        chosen[:] = [_frames_of(clip, count, options.frames_per_second) for clip in clips]
        return sorted({index for of_clip in chosen for index in of_clip})

    frames = options.making().frames_at(VideoSource(video.place, path=video.path), choose)
    wanted = sorted({index for of_clip in chosen for index in of_clip})
    by_index = dict(zip(wanted, frames, strict=True))
    return [[by_index[index] for index in of_clip] for of_clip in chosen]


def _frames_of(clip: Clip, count: int, per_second: float) -> range:
    """The numbers of a clip's frames among ``count``; times may lie before the video or after it."""
    after = (count + 1) / per_second
    begins, ends = min(clip.start, after), min(clip.end, after)
    first, end = math.ceil(begins * per_second), math.ceil(ends * per_second)
    if first >= end:
        first = math.floor((begins + ends) / 2 * per_second)
        end = first + 1
    return range(min(max(first, 0), count), min(max(end, 0), count))
