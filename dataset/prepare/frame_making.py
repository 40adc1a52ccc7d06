"""Converts the video of a record to a list of frames."""

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
from dataset.broken import broken_record
from dataset.config import VideoReadingConfig
from dataset.media.augment import shrink
from dataset.media.encoded import EncodedImage, encode_jpeg, pixels_of
from dataset.media.sources import VideoSource, video_source
from dataset.media.video import Choose, read_frames, sample_frames
from dataset.prepare.output_folder import json_line

FRAMES_VERSION = 1
"""Version of the frame selection and encoding. It is increased if the same arguments yield different frames than before."""

TIME_LIMIT_S = 600.0
"""Time limit for reading a video, in seconds. A video that takes longer counts as broken."""


@dataclass(frozen=True)
class FrameMaking:
    """Selects and encodes the frames of a video.

    Args:
        reading: frames per second, backend and time limit.
        short_side: maximum length of the shorter side of a frame in pixels.
        quality: JPEG quality.
        max_frames: maximum number of frames of a video, which are evenly spaced; if None, all frames are used.
        max_pixels: maximum number of pixels in a frame. A video with larger frames counts as broken.
    """

    reading: VideoReadingConfig = field(default_factory=lambda: VideoReadingConfig(time_limit_s=TIME_LIMIT_S))
    short_side: int = 384
    quality: int = 90
    max_frames: int | None = None
    max_pixels: int = 80_000_000

    def frames(self, source: VideoSource) -> list[str]:
        """Returns the frames as base64-encoded JPEGs.

        Raises:
            BrokenRecordError: raised by :func:`~dataset.media.video.read_frames`.
        """

        def choose(count: int) -> Sequence[int]:
            limit = self.max_frames
            return range(count) if limit is None or count <= limit else sample_frames(count, limit)

        return self.frames_at(source, choose)

    def frames_at(self, source: VideoSource, choose: Choose) -> list[str]:
        """Returns the chosen frames; raises the same errors as :meth:`frames`. If no frame is chosen, nothing is decoded."""
        encoded = read_frames(source, self.reading, choose, self._encoded, self.max_pixels)
        return [base64.b64encode(content.numpy().tobytes()).decode("ascii") for content in encoded]

    def _encoded(self, frame: Tensor | EncodedImage) -> Tensor:
        """Returns the encoded JPEG as a tensor, (bytes,) uint8, so that a long video is in memory only in encoded form."""
        return torch.frombuffer(
            bytearray(encode_jpeg(shrink(pixels_of(frame), self.short_side), self.quality)), dtype=torch.uint8
        )

    def clips(self, value: Any, key: str, location: str, folder: Path) -> list[list[str]]:
        """Returns the frames of each clip. ``value`` is one video, or a list of clips that are lists of images. Base64 images are
        not changed, even if they are larger than the limits.

        Raises:
            BrokenRecordError: raised by :func:`~dataset.media.sources.video_source` or :func:`~dataset.media.video.read_frames`.
        """
        if has_clips(value):
            return [self.clips(clip, f"{key}[{index}]", location, folder)[0] for index, clip in enumerate(value)]
        source = video_source(value, key, location, folder)
        if source.path is None and all(frame.path is None for frame in source.frames):
            return [value]
        return [self.frames(source)]


def has_clips(value: Any) -> bool:
    """Returns True if the video of a record is a list of clips (see :mod:`dataset.records.clips`)."""
    return isinstance(value, list) and bool(value) and all(isinstance(clip, list) for clip in value)


@dataclass(frozen=True)
class Job:
    """A record whose video is converted to frames.

    Attributes:
        making: selects and encodes the frames.
        location: location of the record, to name in error messages.
        folder: folder that relative paths start from.
        values: values of the record.
        key: key of the video in the record.
        only_frames: whether to write the list of frames without the record.
        broken: the error if the record cannot be read, otherwise None.
    """

    making: FrameMaking
    location: str
    folder: Path
    values: Mapping[str, Any]
    key: str = "video"
    only_frames: bool = False
    broken: BrokenRecord | None = None


@dataclass(frozen=True)
class RecordLine:
    """A record with its frames: the line to write, and the numbers of ``videos`` and ``frames`` in it."""

    content: bytes
    videos: int
    frames: int


def work(job: Job) -> RecordLine | BrokenRecord:
    """Converts the video of a record to frames; returns a broken record if the video cannot be used."""
    if job.broken is not None:
        return job.broken
    value = job.values.get(job.key)
    try:
        clips = job.making.clips(value, job.key, job.location, job.folder)
    except (OSError, MemoryError) as error:
        return BrokenRecord(job.location, "unreadable video", str(error) or "it needs more memory than is available")
    except Exception as error:
        return broken_record(error, job.location)
    frames: Any = clips if has_clips(value) else clips[0]
    content = json.dumps(frames).encode("ascii") if job.only_frames else json_line({**job.values, job.key: frames})
    return RecordLine(content, len(clips), sum(map(len, clips)))


def killed(job: Job) -> BrokenRecord:
    """Returns the broken record for a video that killed the process that read it."""
    return BrokenRecord(
        job.location, "unreadable video", "the process that read it died, because the decoder crashed or memory ran out"
    )
