"""Views of images and videos: the tensors that training and evaluation get of them."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from dataset.media.augment import AugmentConfig, RandAugment, evaluation_view, training_view
from dataset.media.encoded import EncodedImage, PixelsAre, decode, for_boxes
from dataset.media.video import FrameSampler, VideoSource
from dataset.records.schema import BrokenRecordError, ImageSource
from utils.errors import UserError
from utils.image_size import ImageSize, sides_of


class TrainingView:
    """An image as training sees it, (3, H, W) uint8, or frames of a video, (F, 3, H, W), each a view of its own.

    Args:
        image_size: H and W.
        max_pixels: see :class:`~dataset.media.encoded.EncodedImage`.
        augment: what is done to each image.
        videos: how frames are taken of videos; None where there are none.
        pixels: see :data:`~dataset.media.encoded.PixelsAre`.
    """

    def __init__(
        self,
        image_size: ImageSize,
        max_pixels: int,
        augment: AugmentConfig,
        videos: FrameSampler | None = None,
        *,
        pixels: PixelsAre = "shown",
    ):
        self.image_size, self.max_pixels, self.config, self.videos = image_size, max_pixels, augment, videos
        self.pixels: PixelsAre = pixels
        self.augment = RandAugment(augment.rand_augment_ops, augment.rand_augment_magnitude)

    def __call__(self, source: ImageSource | VideoSource, rng: np.random.Generator, *, may_flip: bool) -> Tensor:
        """Raises :class:`BrokenRecordError` where it cannot be read."""

        def view(image: Tensor | EncodedImage, rng: np.random.Generator) -> Tensor:
            return training_view(image, self.image_size, self.config, self.augment, rng, may_flip=may_flip)

        if isinstance(source, VideoSource):
            assert self.videos is not None, "videos without a number of frames"
            return self.videos.training(source, rng, view)
        return view(EncodedImage(source.load(), self.max_pixels, source.location, self.pixels, source.path), rng)

    def filler(self) -> Tensor:
        """A black view for a row that does not count."""
        image = black(self.image_size)
        return image if self.videos is None else image.expand(self.videos.frames, -1, -1, -1)


class EvaluationView:
    """An image as evaluation sees it: the whole of it, (3, H, W) uint8; or whole frames of a video, (F, 3, H, W).

    With ``shuffle_frames`` the frames of a video are put into an order drawn from its place: what the model makes of them
    then shows how far it looks at their order.
    """

    def __init__(
        self,
        image_size: ImageSize,
        max_pixels: int,
        videos: FrameSampler | None = None,
        *,
        shuffle_frames: bool = False,
        pixels: PixelsAre = "shown",
    ):
        self.image_size, self.max_pixels = image_size, max_pixels
        self.pixels: PixelsAre = pixels
        self.videos, self.shuffle_frames = videos, shuffle_frames

    def __call__(self, source: ImageSource | VideoSource, size: tuple[int, int] | None = None) -> Tensor:
        """The view; ``size``: (width, height) that the annotations give an image with boxes, which then is not turned.

        Raises:
            BrokenRecordError: the image or video cannot be read, or is of another size.
        """
        if isinstance(source, VideoSource):
            assert self.videos is not None, "videos without a number of frames"
            frames = self.videos.evaluation(source, lambda frame: evaluation_view(frame, self.image_size))
            return _other_order(frames, source.location) if self.shuffle_frames else frames
        pixels = self.pixels if size is None else for_boxes(self.pixels)
        image = decode(source.load(), self.max_pixels, source.location, pixels, source.path)
        if size is not None:
            check_size(image, size, source.location)
        return evaluation_view(image, self.image_size)


def _other_order(frames: Tensor, location: str) -> Tensor:
    """The frames in an order that is never their own, where there are two at least."""
    count = len(frames)
    if count < 2:
        return frames
    rng = np.random.default_rng(zlib.crc32(location.encode()))
    while (order := rng.permutation(count)).tolist() == list(range(count)):
        pass
    return frames[torch.from_numpy(order)]


def check_medium(sources: Sequence[ImageSource | VideoSource], frames: int | None, key: str) -> None:
    """Raise a :class:`UserError` with the config ``key`` where data and model are not both of images or both of videos."""
    videos = sum(isinstance(source, VideoSource) for source in sources)
    if videos and frames is None:
        raise UserError(f"{key} holds videos, the model is one of images; set model.vision.video.frames")
    if frames is not None and videos < len(sources):
        raise UserError(f"{key} holds images, the model is one of videos; drop model.vision.video")


def check_size(image: Tensor | EncodedImage, size: tuple[int, int], location: str) -> None:
    """Raises :class:`BrokenRecordError` where an image (3, H, W) is not of the (width, height) that its boxes refer to."""
    actual = (image.shape[2], image.shape[1])
    if actual != size:
        raise BrokenRecordError("unreadable image", location, f"is of {actual} pixels, in the annotations of {size}")


def black(size: ImageSize) -> Tensor:
    """A black image for a row that does not count."""
    return torch.zeros(3, *sides_of(size), dtype=torch.uint8)
