"""Cuts videos into clips by their times and extracts the frames. All data sets of videos use this module."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from dataset.media.sources import VideoSource
from dataset.prepare.cleaning import cleaned_text
from dataset.prepare.counts import Counts
from dataset.prepare.declarations import Found
from dataset.prepare.options import VideoOptions

_TAG = re.compile(r"\[[^\[\]]{1,40}\]")
"""``[Music]`` and similar tags, which transcripts contain if nobody speaks."""


class Clip(NamedTuple):
    """A clip: its text, and its ``start`` and ``end`` in seconds."""

    start: float
    end: float
    text: str


class Video(NamedTuple):
    """The texts of a video.

    Attributes:
        values: additional keys of the records.
        clips: the clips in order; if None, the complete video is one clip with the text ``text``.
        text: text of the complete video.
    """

    values: Mapping[str, Any]
    clips: list[Clip] | None = None
    text: str = ""


def speech_clips(clips: Sequence[Clip], counts: Counts, location: str) -> list[Clip]:
    """Returns the clips with speech in the order of their times. Their texts are cleaned.

    Captions of a transcript may overlap, as scrolling captions do, so a clip ends where the next clip begins. A clip is skipped
    if its times are not finite or its end is before its start.
    """
    found, timed = [], []
    for clip in clips:
        if math.isfinite(clip.start) and math.isfinite(clip.end) and clip.start <= clip.end:
            timed.append(clip)
        else:
            counts.read["clips"] += 1
            counts.skip("clip with wrong times", location, f"{clip.start:g} to {clip.end:g} s")
    ordered = sorted(timed, key=lambda clip: clip.start)
    for index, clip in enumerate(ordered):
        counts.read["clips"] += 1
        begins = next((other.start for other in ordered[index + 1 :] if other.start > clip.start), clip.end)
        if begins < clip.end:
            counts.fix("clip cut where the next begins", location)
        spoken = _TAG.sub(" ", clip.text)
        if not spoken.strip():
            counts.skip("clip without speech", location, repr(clip.text[:40]))
        elif (text := cleaned_text(spoken, counts, location)) is not None:
            found.append(Clip(clip.start, min(clip.end, begins), text))
    return found


def video_records(options: VideoOptions, found: Found, counts: Counts) -> Iterator[dict[str, Any]]:
    """Yields records with frames, with the keys of the authors' data: ``video_frames``, ``text``, ``is_continuous``. The values
    of ``found`` are a :class:`Video`.

    Raises:
        BrokenRecordError: the video cannot be read.
    """
    video: Video = found.values
    source = VideoSource(found.location, path=found.file)
    if video.clips is None:
        text = cleaned_text(video.text, counts, found.location)
        if text is not None:
            frames = options.making().frames(source)
            _count(counts, 1, len(frames))
            yield {**video.values, "video_frames": frames, "text": text}
        return
    clips = speech_clips(video.clips, counts, found.location)
    if not clips:
        counts.skip("video without speech", found.location)
        return
    cut = cut_frames(source, clips, options)
    kept = [(clip, frames) for clip, frames in zip(clips, cut, strict=True) if frames]
    for clip in (clip for clip, frames in zip(clips, cut, strict=True) if not frames):
        counts.skip("clip outside its video", found.location, f"{clip.start:g} to {clip.end:g} s")
    for start in range(0, len(kept), options.clips):
        part = kept[start : start + options.clips]
        _count(counts, len(part), sum(len(frames) for _, frames in part))
        yield {
            **video.values,
            "video_frames": [frames for _, frames in part],
            "text": [clip.text for clip, _ in part],
            "is_continuous": True,
        }
    counts.written["videos"] += bool(kept)


def _count(counts: Counts, clips: int, frames: int) -> None:
    counts.written["clips"] += clips
    counts.written["frames"] += frames


def cut_frames(video: VideoSource, clips: Sequence[Clip], options: VideoOptions) -> list[list[str]]:
    """Returns the frames of each clip. The video is decoded once.

    Frames are at multiples of 1 / ``frames_per_second``. If a clip lies between two frames, it has the last frame before its
    middle. A clip outside the video has no frames.
    """
    chosen: list[range] = []

    def choose(count: int) -> list[int]:
        chosen[:] = [_frames_of(clip, count, options.frames_per_second) for clip in clips]
        return sorted({index for indices in chosen for index in indices})

    frames = options.making().frames_at(video, choose)
    needed = sorted({index for indices in chosen for index in indices})
    by_index = dict(zip(needed, frames, strict=True))
    return [[by_index[index] for index in indices] for indices in chosen]


def _frames_of(clip: Clip, count: int, per_second: float) -> range:
    """Returns the indices of a clip's frames in a video of ``count`` frames. The clip may be before or after the video."""
    after = (count + 1) / per_second
    begins, ends = min(clip.start, after), min(clip.end, after)
    first, end = math.ceil(begins * per_second), math.ceil(ends * per_second)
    if first >= end:
        first = math.floor((begins + ends) / 2 * per_second)
        end = first + 1
    return range(min(max(first, 0), count), min(max(end, 0), count))
