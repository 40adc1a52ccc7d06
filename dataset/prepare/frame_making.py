"""Making the video of one record into a list of frames."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from batches.base import BrokenRecord
from dataset.media.augment import shrink
from dataset.media.encoded import EncodedImage, encode_jpeg, pixels_of
from dataset.media.video import Choose, VideoReadingConfig, VideoSource, read_frames, sample_frames, video_source
from dataset.prepare.output import json_line
from dataset.records.broken import broken_record
from dataset.records.schema import BrokenRecordError

MAKING = 1
"""Increased when the same arguments give other frames."""


@dataclass(frozen=True)
class FrameMaking:
    """Choice and encoding of a video's frames.

    Args:
        reading: candidates in a second, backend, time limit.
        short_side: of a frame in pixels, at most.
        quality: of a JPEG.
        max_frames: of a video, at even distances; None: all.
        max_pixels: a video with larger frames is broken.
    """

    reading: VideoReadingConfig = field(default_factory=lambda: VideoReadingConfig(time_limit_s=600))
    short_side: int = 384
    quality: int = 90
    max_frames: int | None = None
    max_pixels: int = 80_000_000

    def frames(self, source: VideoSource) -> list[str]:
        """The frames as base64 JPEGs.

        Raises:
            BrokenRecordError: as :func:`~dataset.media.video.read_frames`.
        """

        def choose(count: int) -> Sequence[int]:
            limit = self.max_frames
            return range(count) if limit is None or count <= limit else sample_frames(count, limit)

        return self.frames_at(source, choose)

    def frames_at(self, source: VideoSource, choose: Choose) -> list[str]:
        """The chosen frames; raises as :meth:`frames`. None chosen: nothing is decoded."""
        encoded = read_frames(source, self.reading, choose, self._encoded, self.max_pixels)
        return [base64.b64encode(content.numpy().tobytes()).decode("ascii") for content in encoded]

    def _encoded(self, frame: Tensor | EncodedImage) -> Tensor:
        """(bytes,) uint8: of a long video, only the encoded frames are there all at once."""
        return torch.frombuffer(
            bytearray(encode_jpeg(shrink(pixels_of(frame), self.short_side), self.quality)), dtype=torch.uint8
        )

    def clips(self, value: Any, key: str, place: str, folder: Path) -> list[list[str]]:
        """The frames of each clip under ``key``: of one video, or of a list of lists of images. Base64 images stay as they
        are, also where they are larger.

        Raises:
            BrokenRecordError: as :func:`~dataset.media.video.video_source` and :func:`~dataset.media.video.read_frames`.
        """
        if has_clips(value):
            return [self.clips(clip, f"{key}[{number}]", place, folder)[0] for number, clip in enumerate(value)]
        source = video_source(value, key, place, folder)
        if source.path is None and all(frame.path is None for frame in source.frames):
            return [value]
        return [self.frames(source)]


def has_clips(value: Any) -> bool:
    """Whether a record's video is several clips (see :mod:`dataset.records.clips`)."""
    return isinstance(value, list) and bool(value) and all(isinstance(clip, list) for clip in value)


@dataclass(frozen=True)
class Job:
    """A record whose video becomes frames. ``broken``: why the record cannot be read. ``bare``: write the frames alone."""

    making: FrameMaking
    place: str
    folder: Path
    values: Mapping[str, Any]
    key: str = "video"
    bare: bool = False
    broken: BrokenRecord | None = None


@dataclass(frozen=True)
class RecordLine:
    """A record with its frames, encoded as it is written, and the numbers of its ``videos`` and ``frames``."""

    content: bytes
    videos: int
    frames: int


def work(job: Job) -> RecordLine | BrokenRecord:
    """Make the frames of a record; returns a broken record if its video cannot be used."""
    if job.broken is not None:
        return job.broken
    value = job.values.get(job.key)
    try:
        clips = job.making.clips(value, job.key, job.place, job.folder)
    except BrokenRecordError as error:
        return error.as_broken()
    except (OSError, MemoryError) as error:
        return BrokenRecord("unreadable video", job.place, str(error) or "it needs more memory than there is")
    except Exception as error:
        return broken_record(error, job.place)
    frames: Any = clips if has_clips(value) else clips[0]
    content = json.dumps(frames).encode("ascii") if job.bare else json_line({**job.values, job.key: frames})
    return RecordLine(content, len(clips), sum(map(len, clips)))


def killed(job: Job) -> BrokenRecord:
    """The broken record of a video whose reading ended its process."""
    return BrokenRecord(
        "unreadable video", job.place, "the process that read it died (a fault of the decoder, or memory)"
    )
