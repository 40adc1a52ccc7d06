"""Loads the images of a sheet. They are decoded again from their files, with their original aspect ratio and resolution."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from dataset.broken import BrokenRecordError
from dataset.media.encoded import EncodedImage, for_boxes, pixels_of
from dataset.media.sources import ImageSource, VideoSource
from dataset.media.video import read_frames, sample_frames
from dataset.media.views import EvaluationView, check_size
from tasks.drawing.sheet import Panel

logger = logging.getLogger(__name__)

SIDE = 448
"""Maximum length of the longer side, in pixels."""
SMALL = 160
"""An image whose longer side is shorter than this is magnified by an integer factor, so that each pixel becomes a square."""
FRAMES, FRAMES_DOWN = 6, 3
"""Maximum number of video frames that are shown side by side, and of frames that are shown below each other."""


class ImageReader:
    """Reads an image, or a video as a strip of frames, as (H, W, 3) uint8. Images are rotated and placed on white in the same
    way as in the run's evaluation."""

    def __init__(self, view: EvaluationView):
        self.view = view

    def __call__(
        self,
        source: ImageSource | VideoSource,
        *,
        size: tuple[int, int] | None = None,
        side: int = SIDE,
        down: bool = False,
    ) -> np.ndarray:
        """Reads an image or a video.

        Args:
            source: the image or video.
            size: width and height of the image if it has boxes; the image is then not rotated.
            side: maximum length of the longer side; a strip of frames may be twice as wide, or equally wide with ``down``.
            down: whether to place the frames of a video below each other instead of side by side.

        Raises:
            BrokenRecordError: if the image or video cannot be read. The detail begins with the location of the record.
        """
        try:
            if isinstance(source, VideoSource):
                return self._strip(source, side, down)
            pixels = self.view.pixels if size is None else for_boxes(self.view.pixels)
            image = source.open(self.view.max_pixels, pixels).pixels()
            if size is not None:
                check_size(image, size)
        except BrokenRecordError as error:
            raise BrokenRecordError(error.reason, f"{source.location}: {error.detail}") from None
        return _channels_last(fitted(image, side))

    def _strip(self, source: VideoSource, side: int, down: bool) -> np.ndarray:
        sampler = self.view.videos
        assert sampler is not None, "videos without a number of frames"
        count = min(sampler.frames, FRAMES_DOWN if down else FRAMES)
        side_of_frame = side if down else min(side, max(1, 2 * side // count))

        def frame(image: Tensor | EncodedImage) -> Tensor:
            return fitted(pixels_of(image), side_of_frame)

        frames = read_frames(
            source,
            sampler.config,
            lambda candidates: sample_frames(candidates, count),
            frame,
            sampler.max_pixels,
            sampler.pixels,
        )
        return joined([_channels_last(image) for image in frames], down=down)


def readable_panels(draw_functions: Iterable[Callable[[], Panel | None]], file: str) -> tuple[list[Panel], str]:
    """Returns the panels that can be drawn, and a note for the sheet's title that counts the other panels, such as those with a
    broken image.

    Args:
        draw_functions: functions that draw and return a panel, or return None if there is nothing to draw.
        file: file name of the sheet, for the log.
    """
    panels, broken = list[Panel](), 0
    for draw in draw_functions:
        try:
            panel = draw()
        except BrokenRecordError as error:
            logger.warning("%s: skipped an example that cannot be read: %s", file, error)
            broken += 1
        except Exception:  # a failed drawing must not prevent the report of the run
            logger.warning("%s: skipped an example that cannot be drawn", file, exc_info=True)
            broken += 1
        else:
            panels += [] if panel is None else [panel]
    return panels, f" ({broken} others cannot be drawn)" if broken else ""


def spread(count: int, wanted: int) -> list[int]:
    """Returns at most ``wanted`` of ``count`` indices, evenly spaced from the first to the last."""
    return sorted({round(index) for index in np.linspace(0, count - 1, min(wanted, count)).tolist()})


def fitted(image: Tensor, side: int) -> Tensor:
    """Scales an image, (3, H, W) uint8, down so that its longer side is ``side``, or up by an integer factor if its longer side
    is below :data:`SMALL`."""
    height, width = image.shape[1:]
    longer = max(height, width)
    if longer > side:
        shape = [max(1, round(length * side / longer)) for length in (height, width)]
        return interpolate(image.unsqueeze(0).contiguous(), shape, mode="bicubic", antialias=True)[0]
    times = min(side, 2 * SMALL) // longer if longer < SMALL else 1
    return image.repeat_interleave(times, 1).repeat_interleave(times, 2)


def joined(frames: list[np.ndarray], *, down: bool, gap: int = 2) -> np.ndarray:
    """Joins frames side by side, or below each other, on white."""
    axis = 0 if down else 1
    across = max(frame.shape[1 - axis] for frame in frames)
    parts = []
    for index, frame in enumerate(frames):
        padding = [(0, 0), (0, 0), (0, 0)]
        padding[1 - axis] = (0, across - frame.shape[1 - axis])
        padding[axis] = (gap if index else 0, 0)
        parts.append(np.pad(frame, padding, constant_values=255))
    return np.concatenate(parts, axis=axis)


def _channels_last(image: Tensor) -> np.ndarray:
    return np.ascontiguousarray(image.to(torch.uint8).permute(1, 2, 0).numpy())
