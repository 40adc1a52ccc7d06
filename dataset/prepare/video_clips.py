"""Videos cut into clips by their times, and their frames, once: what the sets of videos have in common."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from dataset.media.video import VideoSource
from dataset.prepare.cleaning import cleaned_text
from dataset.prepare.counts import Counts
from dataset.prepare.options import VideoOptions
from dataset.prepare.sets.base import Found
from dataset.records.broken import BrokenRecordError

_TAG = re.compile(r"\[[^\[\]]{1,40}\]")
"""``[Music]`` and the like, which stand in transcripts where nobody speaks."""


class Clip(NamedTuple):
    """A clip: its text, and the times of its ``start`` and ``end`` in seconds."""

    start: float
    end: float
    text: str


class Video(NamedTuple):
    """The texts of a video. ``clips`` in their order; None: the whole video is one clip, with the text ``whole``. ``values``:
    further keys of its records."""

    values: Mapping[str, Any]
    clips: list[Clip] | None = None
    whole: str = ""


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


def video_records(options: VideoOptions, found: Found, counts: Counts) -> Iterator[dict[str, Any]]:
    """Yields records with frames, in the form of the released ones: ``video_frames``, ``text``, ``is_continuous``. The values of
    ``found`` are a :class:`Video`."""
    try:
        yield from _records(options, found, counts)
    except BrokenRecordError as error:
        counts.leave_out(error.kind, found.location, error.message)


def _records(options: VideoOptions, found: Found, counts: Counts) -> Iterator[dict[str, Any]]:
    video: Video = found.values
    source = VideoSource(found.location, path=found.file)
    if video.clips is None:
        text = cleaned_text(video.whole, counts, found.location)
        if text is not None:
            frames = options.making().frames(source)
            _count(counts, 1, len(frames))
            yield {**video.values, "video_frames": frames, "text": text}
        return
    clips = speech_clips(video.clips, counts, found.location)
    if not clips:
        counts.leave_out("video without speech", found.location)
        return
    cut = cut_frames(source, clips, options)
    kept = [(clip, frames) for clip, frames in zip(clips, cut, strict=True) if frames]
    for clip in (clip for clip, frames in zip(clips, cut, strict=True) if not frames):
        counts.leave_out("clip outside its video", found.location, f"{clip.start:g} to {clip.end:g} s")
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


def cut_frames(video: VideoSource, clips: Sequence[Clip], options: VideoOptions) -> list[list[str]]:
    """The frames of each clip, of those at whole multiples of 1 / ``frames_per_second``.

    A clip between two of them has the one before its middle; one outside the video has none. The video is decoded once.
    """
    chosen: list[range] = []

    def choose(count: int) -> list[int]:
        chosen[:] = [_frames_of(clip, count, options.frames_per_second) for clip in clips]
        return sorted({index for of_clip in chosen for index in of_clip})

    frames = options.making().frames_at(video, choose)
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
