"""Views of images and videos: the uint8 tensors, of the model's input size, that training and evaluation read."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from dataset.broken import MediaError
from dataset.config import AugmentConfig
from dataset.media.augment import RandAugment, evaluation_view, hflip, random_resized_crop
from dataset.media.encoded import EncodedImage, PixelState, for_boxes
from dataset.media.sources import ImageSource, VideoSource
from dataset.media.video import FrameSampler
from utils.errors import UserError
from utils.image_size import ImageSize, sides_for


class TrainingView:
    """Reads images for training as (3, H, W) uint8, or videos as (F, 3, H, W), with separate augmentation of each frame.

    Args:
        image_size: size of a view.
        max_pixels: see :class:`~dataset.media.encoded.EncodedImage`.
        augment: augmentation of each image.
        videos: sampler that reads the frames of videos; None for images only.
        pixels: see :data:`~dataset.media.encoded.PixelState`.
    """

    def __init__(
        self,
        image_size: ImageSize,
        max_pixels: int,
        augment: AugmentConfig,
        videos: FrameSampler | None = None,
        *,
        pixels: PixelState = "shown",
    ):
        self.image_size, self.max_pixels, self.config, self.videos = image_size, max_pixels, augment, videos
        self.pixels: PixelState = pixels
        self.augment = RandAugment(augment.rand_augment_ops, augment.rand_augment_magnitude)

    def __call__(self, source: ImageSource | VideoSource, rng: np.random.Generator, *, may_flip: bool) -> Tensor:
        """Reads a view of an image or video; raises :class:`MediaError` if it cannot be read."""
        if isinstance(source, VideoSource):
            assert self.videos is not None, "videos without a number of frames"
            return self.videos.training(source, rng, partial(self.of, may_flip=may_flip))
        return self.of(source.open(self.max_pixels, self.pixels), rng, may_flip=may_flip)

    def of(self, image: Tensor | EncodedImage, rng: np.random.Generator, *, may_flip: bool) -> Tensor:
        """Takes a random crop of an image and resizes it, mirrors the crop with the configured probability if ``may_flip``, and
        applies RandAugment."""
        view = random_resized_crop(image, self.image_size, self.config, rng)
        if rng.random() < self.config.flip and may_flip:
            view = hflip(view)
        return self.augment(view, rng)

    def filler(self) -> Tensor:
        """Returns a black view for a filler row, which does not count in the losses."""
        image = black(self.image_size)
        return image if self.videos is None else image.expand(self.videos.frames, -1, -1, -1)


class EvaluationView:
    """Reads whole images for evaluation as (3, H, W) uint8, or whole frames of videos as (F, 3, H, W).

    With ``shuffle_frames``, the frames of a video are shuffled, in an order that depends only on the record's location. The
    metrics then show how much the model relies on the order of frames.
    """

    def __init__(
        self,
        image_size: ImageSize,
        max_pixels: int,
        videos: FrameSampler | None = None,
        *,
        shuffle_frames: bool = False,
        pixels: PixelState = "shown",
    ):
        self.image_size, self.max_pixels = image_size, max_pixels
        self.pixels: PixelState = pixels
        self.videos, self.shuffle_frames = videos, shuffle_frames

    def __call__(self, source: ImageSource | VideoSource, size: tuple[int, int] | None = None) -> Tensor:
        """Reads a view of an image or video.

        Args:
            source: the image or video.
            size: width and height of the image according to its annotations, if it has boxes; the image is then not rotated.

        Raises:
            MediaError: if the image or video cannot be read, or has a different size.
        """
        if isinstance(source, VideoSource):
            assert self.videos is not None, "videos without a number of frames"
            frames = self.videos.evaluation(source, lambda frame: evaluation_view(frame, self.image_size))
            return _shuffled(frames, source.location) if self.shuffle_frames else frames
        pixels = self.pixels if size is None else for_boxes(self.pixels)
        image = source.open(self.max_pixels, pixels).pixels()
        if size is not None:
            check_size(image, size)
        return evaluation_view(image, self.image_size)


def _shuffled(frames: Tensor, location: str) -> Tensor:
    """Shuffles frames. The new order always differs from the original order if there are at least two frames."""
    count = len(frames)
    if count < 2:
        return frames
    rng = np.random.default_rng(zlib.crc32(location.encode()))
    while (order := rng.permutation(count)).tolist() == list(range(count)):
        pass
    return frames[torch.from_numpy(order)]


def check_medium(sources: Sequence[ImageSource | VideoSource], frames: int | None, key: str) -> None:
    """Raises :class:`UserError`, naming the config ``key``, if an image model gets videos, or a video model gets images."""
    videos = sum(isinstance(source, VideoSource) for source in sources)
    if videos and frames is None:
        raise UserError(f"{key} has videos, but the model takes images", remedy="set model.vision.video.frames")
    if frames is not None and videos < len(sources):
        raise UserError(f"{key} has images, but the model takes videos", remedy="remove model.vision.video")


def check_size(image: Tensor | EncodedImage, size: tuple[int, int]) -> None:
    """Raises :class:`MediaError` if an image (3, H, W) does not have the (width, height) of its annotations."""
    actual = (image.shape[2], image.shape[1])
    if actual != size:
        raise MediaError("unreadable image", f"has {actual} pixels, but {size} in the annotations")


def black(size: ImageSize) -> Tensor:
    """Returns a black image for a filler row, which does not count in the losses. If images keep their aspect ratio, it is a
    square."""
    return torch.zeros(3, *sides_for(size, 1, 1), dtype=torch.uint8)
