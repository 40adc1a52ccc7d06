"""Videos: chooses frames from files, lists of images and folders of images, and decodes only the chosen frames.

Candidates are the frames of a file that are shown at whole seconds (section 3.2 of the paper), or all images of a list or a
folder. Evaluation chooses evenly spaced frames; training chooses frames at random. The choice does not depend on the backend that
decodes the video. A rotation in the header of a video file is not applied.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dataset.broken import MediaError
from dataset.config import VideoReadingConfig
from dataset.files import RECORD_BYTES, read_file
from dataset.media.decoding import Clock, decoded, index_of, run_with_limit, why_not_loaded
from dataset.media.encoded import EncodedImage, PixelState
from dataset.media.sources import ImageSource, VideoSource, image_of
from utils.errors import UserError
from utils.suffixes import IMAGE_SUFFIXES

Choose = Callable[[int], Sequence[int]]
"""Function that takes the number of candidate frames and returns the indices of the chosen frames, in ascending order. An index
may be repeated."""
FrameView = Callable[[Tensor | EncodedImage], Tensor]
"""Function that takes a frame, decoded to (3, H, W) uint8 RGB or still encoded, and returns the tensor to keep."""

LIST_SUFFIX = ".json"


def sample_frames(count: int, wanted: int, rng: np.random.Generator | None = None) -> list[int]:
    """Chooses ``wanted`` of ``count`` frames, in ascending order, like ``sample_frame_ids`` in the authors' code.

    If there are enough frames, the video is split into ``wanted`` segments of nearly equal length, and one frame is taken from
    each. In evaluation, the longer segments come at the beginning, and the first frame of each segment is taken. In training, the
    longer segments are at random positions, and a random frame of each segment is taken.

    If there are too few frames, all of them are taken, and some are repeated: in a cycle in evaluation, at random in training.

    Args:
        count: number of frames in the video.
        wanted: number of frames to choose.
        rng: source of randomness for training; None for evaluation.
    """
    if count <= wanted:
        repeated = range(count, wanted) if rng is None else rng.integers(count, size=wanted - count).tolist()
        return sorted([*range(count), *(frame % count for frame in repeated)])
    lengths = np.full(wanted, count // wanted)
    lengths[: count % wanted] += 1
    if rng is not None:
        rng.shuffle(lengths)
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    return (starts if rng is None else starts + rng.integers(lengths)).tolist()


@dataclass(frozen=True)
class FrameSampler:
    """Reads videos as tensors (F, 3, S, S) with ``frames`` frames each. A frame is resized immediately after it is decoded."""

    frames: int
    config: VideoReadingConfig
    max_pixels: int
    pixels: PixelState = "shown"

    def training(
        self,
        source: VideoSource,
        rng: np.random.Generator,
        view: Callable[[Tensor | EncodedImage, np.random.Generator], Tensor],
    ) -> Tensor:
        """Returns views of random frames. ``view`` is called with a frame and a source of randomness.

        Raises:
            MediaError: see :func:`read_frames`.
        """
        chosen, views = (np.random.default_rng(rng.integers(2**63)) for _ in range(2))
        seed = int(views.integers(2**63))

        def view_of(frame: Tensor | EncodedImage) -> Tensor:
            return view(frame, np.random.default_rng(seed) if self.config.same_view else views)

        return self._read(source, lambda count: sample_frames(count, self.frames, chosen), view_of)

    def evaluation(self, source: VideoSource, view: FrameView) -> Tensor:
        """Returns views of evenly spaced frames.

        Raises:
            MediaError: see :func:`read_frames`.
        """
        return self._read(source, lambda count: sample_frames(count, self.frames), view)

    def _read(self, source: VideoSource, choose: Choose, view: FrameView) -> Tensor:
        return torch.stack(read_frames(source, self.config, choose, view, self.max_pixels, self.pixels))


def read_frames(
    source: VideoSource,
    config: VideoReadingConfig,
    choose: Choose,
    view: FrameView,
    max_pixels: int,
    pixels: PixelState = "shown",
) -> list[Tensor]:
    """Returns the ``view`` of each chosen frame, in order. Only one frame at a time is in memory at full size.

    Raises:
        MediaError: "missing video"; "unreadable video" if a file is empty, truncated, damaged or without images, or the
            time limit is exceeded; "image too large"; or, for a list of images, any error of a broken image.
    """
    clock = Clock(config.time_limit_s)
    return run_with_limit(
        clock, lambda: [view(frame) for frame in _chosen(source, config, choose, max_pixels, pixels, clock)]
    )


def check_backend(sources: Iterable[VideoSource], config: VideoReadingConfig, key: str) -> None:
    """Checks that the decoder can be loaded if ``sources`` contain a video file. Lists and folders of images need no decoder.

    ``sources`` are read only if the decoder cannot be loaded.

    Raises:
        UserError: if ``sources`` contain a video file and the backend cannot be loaded. The message names the config ``key``.
    """
    reason = why_not_loaded(config.backend)
    if reason is None:
        return
    file = next((source for source in sources if source.path is not None and _is_video_file(source.path)), None)
    if file is not None:
        remedy = "av" if config.backend == "av" else f"av {config.backend}, or use backend: av"
        raise UserError(
            f"{config.backend} cannot be loaded ({reason}), and {file.path} ({file.location}) is a video file",
            where=f"{key}.backend",
            remedy=f"pip install {remedy}",
        )


def check_held_out(sources: Sequence[VideoSource], config: VideoReadingConfig, max_pixels: int, key: str) -> None:
    """Indexes every video file of a held-out split, without decoding, so that a broken file is reported before training.

    Raises:
        UserError: for the first file that is not a complete video; or for the reasons listed in :func:`check_backend`. The
            message names the config ``key``.
    """
    check_backend(sources, config, "data.video")
    for path, location in {source.path: source.location for source in sources if source.path is not None}.items():
        if not _is_video_file(path):
            continue
        try:
            index_of(path, max_pixels, Clock(config.time_limit_s))
        except MediaError as error:
            raise UserError(
                f"{location}: {error}", where=key, remedy="a held-out set must not contain broken records"
            ) from None


def _is_video_file(path: Path) -> bool:
    """Returns True if ``path`` needs a video decoder, because it is neither a list nor a folder of images."""
    return path.suffix.lower() != LIST_SUFFIX and not path.is_dir()


def _chosen(
    source: VideoSource,
    config: VideoReadingConfig,
    choose: Choose,
    max_pixels: int,
    pixels: PixelState,
    clock: Clock,
) -> Iterator[Tensor | EncodedImage]:
    """Yields each chosen frame. Frames of a video file are decoded; frames of a list or a folder of images are still encoded."""
    images = _images(source)
    if images is not None:
        for number, again in itertools.groupby(choose(len(images))):
            image = images[number].open(max_pixels, pixels)
            for _ in again:
                clock.check()
                yield image
        return
    assert source.path is not None
    index = index_of(source.path, max_pixels, clock)
    candidates = index.frames_every(1 / config.frames_per_second)
    chosen = [candidates[number] for number in choose(len(candidates))]
    with closing(decoded(source.path, index, sorted(set(chosen)), config.backend, clock)) as frames:
        for _, again in itertools.groupby(chosen):
            frame = next(frames)
            for _ in again:
                clock.check()
                yield frame


def _images(source: VideoSource) -> Sequence[ImageSource] | None:
    """Returns the images of a list or a folder, or None for a video file.

    Raises:
        MediaError: if the path does not exist or has no images.
    """
    if source.path is None:
        return source.frames
    path = source.path
    try:
        is_folder, is_file = path.is_dir(), path.is_file()
    except (OSError, ValueError) as error:  # the name is too long or invalid
        raise MediaError("missing video", f"{str(path)[:200]}: {error}") from None
    if not (is_folder or is_file):
        reason = "is not a regular file" if path.exists() else "does not exist"
        raise MediaError("missing video", f"{str(path)[:200]} {reason}")
    if is_folder:
        files = sorted((file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES), key=_by_number)
        images = [ImageSource(source.location, path=file) for file in files]
    elif path.suffix.lower() == LIST_SUFFIX:
        images = _listed_images(path, source.location)
    else:
        return None
    if not images:
        raise MediaError("unreadable video", f"{path} contains no images")
    return images


def _listed_images(path: Path, location: str) -> list[ImageSource]:
    try:
        values = json.loads(read_file(path, RECORD_BYTES, "video"))
    except (ValueError, RecursionError) as error:
        raise MediaError("unreadable video", f"{path} is not a JSON list of images: {error}") from None
    if not isinstance(values, list):
        raise MediaError("unreadable video", f"{path} is not a JSON list of images")
    return [image_of(value, f"{path.name}[{number}]", location, path.parent) for number, value in enumerate(values)]


def _by_number(path: Path) -> list[Any]:
    """Returns a sort key that puts 10.jpg after 9.jpg."""
    parts = re.split(r"(\d+)", path.name)
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts if part]
