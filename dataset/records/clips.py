"""Video-text records for pre-training: clips with captions. Neighbouring clips may be joined (section 4.1 of the paper).

A record has one clip, ``{"video": ["<base64>", …] | "<path>", "caption": …}``, or several,
``{"video": [["<base64>", …], …], "caption": [text per clip], "is_continuous": bool}``. If ``is_continuous`` is true, the clips
follow each other in one video. Images may be paths instead of base64 texts. A record with several clips cannot contain video
files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dataset.broken import BrokenRecordError
from dataset.media.sources import VideoSource, video_source
from dataset.records.schema import RawRecord, Texts, broken_key, texts_in

NO_SPEECH = "[music]"
"""Transcript of a clip without speech. Clips without speech are not used, as in the authors' code."""


@dataclass(frozen=True)
class VideoRecord:
    """Clips and their captions. Each clip has alternative captions, one of which is drawn each time."""

    location: str
    clips: tuple[VideoSource, ...]
    captions: tuple[Texts, ...]
    continuous: bool

    @property
    def spoken(self) -> list[int]:
        """Indices of the clips with speech."""
        return [clip for clip, texts in enumerate(self.captions) if not _has_no_speech(texts)]


def parse_video_record(raw: RawRecord, video_key: str, caption_key: str, root: Path | None) -> VideoRecord:
    """Parses the clips of a record.

    Args:
        raw: the record.
        video_key: key of the video or of the list of clips.
        caption_key: key of the caption or of the list of captions.
        root: folder that relative paths start from; if None, the folder of the shard.

    Raises:
        BrokenRecordError: "missing key", "wrong type", "missing video" or "unreadable video".
    """
    value, caption = raw.values.get(video_key), raw.values.get(caption_key)
    if value is None:
        raise broken_key(raw, video_key)
    if caption is None:
        raise broken_key(raw, caption_key)
    folder, location = root or raw.folder, raw.location
    continuous = raw.values.get("is_continuous") is True
    if not (isinstance(value, list) and value and all(isinstance(clip, list) for clip in value)):
        if continuous and isinstance(caption, list):
            raise BrokenRecordError(
                "wrong type",
                f"is_continuous joins clips that are lists of images or of their paths, and {video_key} is one video; use a "
                f"list of lists, or one video per record without is_continuous",
            )
        return VideoRecord(
            location,
            (video_source(value, video_key, location, folder),),
            (texts_in(caption, caption_key),),
            False,
        )
    if not isinstance(caption, list) or len(caption) != len(value):
        count = f"{len(caption)} texts" if isinstance(caption, list) else "no list"
        raise BrokenRecordError("wrong type", f"{caption_key} is {count} for the {len(value)} clips of {video_key}")
    clips = [video_source(clip, f"{video_key}[{number}]", location, folder) for number, clip in enumerate(value)]
    captions = [texts_in(text, f"{caption_key}[{number}]") for number, text in enumerate(caption)]
    return VideoRecord(location, tuple(clips), tuple(captions), continuous)


def choose_clip(
    record: VideoRecord, rng: np.random.Generator, *, join: bool, min_frames: int
) -> tuple[VideoSource, list[Texts]]:
    """Draws a random clip with speech, and returns it with its captions.

    With ``join``, neighbouring clips of a continuous video are added on a random side, until the clips with speech have
    ``min_frames`` frames or there are no more clips. This is ``sample_clip_ids`` in the authors' code, except that there, the
    first clip may have no speech.

    Raises:
        BrokenRecordError: "empty text" if no clip has speech.
    """
    spoken = record.spoken
    if not spoken:
        raise BrokenRecordError("empty text", "no clip has speech; all captions are [Music]")
    first = last = spoken[int(rng.integers(len(spoken)))]
    end = len(record.clips) - 1
    while (
        join and record.continuous and _frames(record, spoken, first, last) < min_frames and (first, last) != (0, end)
    ):
        leftwards = first > 0 and (last == end or rng.random() < 0.5)
        first, last = (first - 1, last) if leftwards else (first, last + 1)
    chosen = [clip for clip in spoken if first <= clip <= last]
    if len(chosen) == 1:
        return record.clips[chosen[0]], [record.captions[chosen[0]]]
    frames = tuple(frame for clip in chosen for frame in record.clips[clip].frames)
    return VideoSource(record.location, frames=frames), [record.captions[clip] for clip in chosen]


def _frames(record: VideoRecord, spoken: Sequence[int], first: int, last: int) -> int:
    return sum(len(record.clips[clip].frames) for clip in spoken if first <= clip <= last)


def _has_no_speech(texts: Texts) -> bool:
    return all(isinstance(text, str) and text.strip().lower() == NO_SPEECH for text in texts)
