"""Converts images and videos of all supported types to model inputs, and to pictures for drawing."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image as PILImage
from PIL import ImageOps
from torch import Tensor

from dataset.broken import BrokenRecordError
from dataset.media.augment import evaluation_view
from dataset.media.encoded import EncodedImage, decode, pixels_of, rgb_of
from dataset.media.sources import ImageSource, VideoSource
from dataset.media.video import LIST_SUFFIX, FrameSampler, sample_frames
from tasks.drawing.images import fitted, joined
from utils.errors import UserError
from utils.image_size import ImageSize
from utils.suffixes import VIDEO_SUFFIXES

VIDEO_INPUT_SUFFIXES = (*VIDEO_SUFFIXES, LIST_SUFFIX)
"""Suffixes of video files and of files with lists of base64 images."""

SIDE = 320
"""Length of the longer side of a drawn image, in pixels."""


@dataclass(frozen=True)
class View:
    """An image or a video as a model sees it.

    The ``pixels`` are (3, S, S) or (F, 3, S, S) uint8, ``size`` is the width and height of the original in pixels, and ``name``
    identifies the image in messages.
    """

    pixels: Tensor
    size: tuple[int, int]
    name: str


Image = str | Path | PILImage.Image | np.ndarray | Tensor | View
"""The path of an image or a video, a Pillow image, or a uint8 array (H, W, 3) or tensor (3, H, W). A video can also be an array
(F, H, W, 3) or a tensor (F, 3, H, W)."""

FrameView = Callable[[Tensor | EncodedImage], Tensor]


class _Views(NamedTuple):
    """The views of a video's frames, or of a single image. ``size`` is the width and height of the original."""

    frames: list[Tensor]
    size: tuple[int, int]
    name: str


def as_list(images: Any) -> list[Any]:
    """Returns images as a list. A single image becomes a list of one, and any other iterable is converted to a list."""
    is_single = isinstance(images, str | bytes | Path | PILImage.Image | np.ndarray | Tensor | View)
    return list(images) if isinstance(images, Iterable) and not is_single else [images]


class Reader:
    """Reads images and videos. Images are rotated according to their EXIF orientation, and transparency is rendered on white.

    Args:
        image_size: size of the views.
        max_pixels: images with more pixels are rejected before they are decoded.
        videos: samples the frames of videos; None if the model is an image model.
    """

    def __init__(self, image_size: ImageSize, max_pixels: int, videos: FrameSampler | None):
        self.image_size, self.max_pixels, self.videos = image_size, max_pixels, videos

    def __call__(self, image: Image) -> View:
        """Returns the view of an image or a video.

        Raises:
            UserError: the image cannot be read, or the model does not accept this type of input.
        """
        if isinstance(image, View):
            return image
        views = self._views(image, lambda pixels: evaluation_view(pixels, self.image_size))
        return View(torch.stack(views.frames) if self.videos else views.frames[0], views.size, views.name)

    def picture(self, image: Image, side: int = SIDE) -> np.ndarray:
        """Returns an image for drawing, (H, W, 3) uint8 with a longer side of ``side``; for a video, its frames side by side.

        Raises:
            UserError: the image cannot be read, or the model does not accept this type of input.
        """
        if isinstance(image, View):
            image = image.pixels
        frames = self._views(image, lambda pixels: fitted(pixels_of(pixels), side)).frames
        return joined(
            [np.ascontiguousarray(frame.to(torch.uint8).permute(1, 2, 0).numpy()) for frame in frames], down=False
        )

    def _views(self, image: Image, view: FrameView) -> _Views:
        try:
            if isinstance(image, str) and "://" in image:
                raise UserError("URLs are not supported", where=image, remedy="download the image and pass its path")
            if isinstance(image, str | Path):
                return self._from_file(Path(image).expanduser(), view)
            if isinstance(image, PILImage.Image):
                return self._from_image(self._from_pillow(image), "a Pillow image", view)
            if isinstance(image, np.ndarray | Tensor):
                return self._from_array(image, view)
        except BrokenRecordError as error:
            name = str(Path(image).expanduser()) if isinstance(image, str | Path) else "a Pillow image"
            detail = error.detail.removeprefix(name).lstrip(": ")  # the message begins with the name
            raise UserError(f"{error.reason}: {detail}", where=name) from None
        raise UserError(f"an image is a path, a Pillow image, an array or a tensor, not {type(image).__name__}")

    def _from_file(self, path: Path, view: FrameView) -> _Views:
        name = str(path)
        is_folder = os.path.isdir(path)  # Path.is_dir raises an error for a name that is too long
        if not is_folder and path.suffix.lower() not in VIDEO_INPUT_SUFFIXES:
            return self._from_image(decode(ImageSource(name, path=path).load(), self.max_pixels), name, view)
        sizes: list[tuple[int, int]] = []

        def sized(frame: Tensor | EncodedImage) -> Tensor:
            sizes.append((frame.shape[2], frame.shape[1]))
            return view(frame)

        frames = _require_sampler(self.videos, name).evaluation(VideoSource(name, path=path), sized)
        return _Views(list(frames), sizes[0], name)

    def _from_array(self, image: np.ndarray | Tensor, view: FrameView) -> _Views:
        """Returns the views of an array (channels are the last axis) or a tensor (channels precede height and width)."""
        name = f"{'an array' if isinstance(image, np.ndarray) else 'a tensor'} of shape {tuple(image.shape)}"
        # The array is copied, because torch warns about read-only arrays such as numpy views of Pillow images.
        pixels = torch.from_numpy(np.array(image, order="C")) if isinstance(image, np.ndarray) else image.cpu()
        if pixels.dtype != torch.uint8:
            raise UserError(
                f"{name} contains {str(pixels.dtype).removeprefix('torch.')}", remedy="pass uint8 in 0..255"
            )
        if isinstance(image, np.ndarray):
            pixels = pixels.unsqueeze(2).expand(-1, -1, 3) if pixels.dim() == 2 else pixels
            pixels = pixels.movedim(-1, -3) if pixels.dim() >= 3 else pixels
        if pixels.dim() not in (3, 4) or pixels.shape[-3] != 3 or 0 in pixels.shape:
            raise UserError(
                f"{name} is not an image: an array is (H, W, 3), a tensor (3, H, W)",
                remedy="in a video, frames are the first axis",
            )
        if pixels.dim() == 3:
            return self._from_image(pixels, name, view)
        chosen = sample_frames(len(pixels), _require_sampler(self.videos, name).frames)
        return _Views([view(pixels[index]) for index in chosen], (pixels.shape[3], pixels.shape[2]), name)

    def _from_image(self, pixels: Tensor, name: str, view: FrameView) -> _Views:
        if self.videos is not None:
            raise UserError(
                f"{name} is an image, but the model takes videos", remedy="pass a video, or the frames of a video"
            )
        return _Views([view(pixels)], (pixels.shape[2], pixels.shape[1]), name)

    def _from_pillow(self, image: PILImage.Image) -> Tensor:
        """Returns the pixels of a Pillow image, (3, H, W) uint8."""
        name = "a Pillow image"
        if not image.width or not image.height:
            raise UserError(
                f"{name} has {image.width} x {image.height} pixels", remedy="pass an image with at least one pixel"
            )
        if image.width * image.height > self.max_pixels:
            size = f"{image.width} x {image.height} pixels"
            raise UserError(f"{name} has {size}, more than max_pixels = {self.max_pixels}")
        try:
            return rgb_of(ImageOps.exif_transpose(image), on_white=True)
        except (OSError, ValueError, SyntaxError) as error:
            raise UserError(f"{name} cannot be read: {error}", remedy="pass an image in a supported format") from None


def _require_sampler(videos: FrameSampler | None, name: str) -> FrameSampler:
    if videos is None:
        raise UserError(
            f"{name} is a folder or a video, but the model takes images", remedy="pass an image, or load a video model"
        )
    return videos
