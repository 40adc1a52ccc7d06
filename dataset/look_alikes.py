"""Finds images that look alike: resized, recompressed or recoloured copies of a photograph, and crops.

:mod:`dataset.leaks` compares ids, paths and bytes. This module compares pixels, in two steps. First, the crop-resistant hash of
the library imagehash proposes pairs: it hashes each bright or dark segment of an image, and two images become a pair if one
segment is similar. Then the middle of one image is searched for in the other image at several scales, by normalised
cross-correlation of small grey images.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from PIL import Image

from dataset.broken import BrokenRecordError
from dataset.config import LoadingConfig
from dataset.media.sources import ImageSource, VideoSource
from utils.progress import progress_bar

Source = ImageSource | VideoSource

MAX_PIXELS: int = LoadingConfig.model_fields["max_pixels"].default
"""Maximum number of pixels of an image, the default of a run."""

SEGMENTATION_SIDE, MIN_SEGMENT = 100, 55
"""Side of the image for segmentation, and minimum number of pixels in a segment. imagehash's defaults, 300 and 500, take ten
times as long."""

MAX_BITS = 14
"""Maximum distance between the hashes of two segments, out of 64 bits."""

MIN_CORRELATION, WARN_CORRELATION = 0.85, 0.94
"""Minimum normalised cross-correlation between the middle of one image and a part of the other: the first value to list a pair,
the second to warn about it. The table in docs/ablations.md shows how many copies each threshold detects, and how many false
alarms it causes."""

SIDE = 48
"""Longer side of the grey images that are correlated, in pixels."""

MIDDLE = 0.7
"""Fraction of each side of an image that its middle covers, which is searched for in the other image."""

SCALES = tuple(1.05**-step for step in range(11))
"""Ratios of the sides of a crop to the sides of the original image: down to 0.61, which is 38% of the area."""

MIN_CONTRAST = 4.0
"""Minimum standard deviation of grey levels. Flatter parts of images look alike by chance."""

CHUNK = 2048
"""Number of segments that are compared with all other segments at once."""


@dataclass(frozen=True)
class Look:
    """Two descriptions of an image's appearance: the hashes of its segments (each a row of 64 values, 1 or -1), and a small grey
    copy."""

    segments: np.ndarray[Any, np.dtype[np.float32]]
    grey: Image.Image

    @cached_property
    def pixels(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        return np.asarray(self.grey, dtype=np.float64)

    @cached_property
    def sums(self) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Integral images of the grey levels and of their squares."""
        padded = np.pad(self.pixels, ((1, 0), (1, 0)))
        return padded.cumsum(0).cumsum(1), (padded**2).cumsum(0).cumsum(1)

    @cached_property
    def spectrum(self) -> np.ndarray[Any, Any]:
        return np.fft.rfft2(self.pixels)


def available() -> bool:
    """Returns True if the library imagehash is installed."""
    return importlib.util.find_spec("imagehash") is not None


def look_of(image: Image.Image) -> Look:
    """Computes the look of a decoded image."""
    import imagehash

    image = image.convert("RGB")
    image.thumbnail((512, 512))
    hashes = imagehash.crop_resistant_hash(
        image, segmentation_image_size=SEGMENTATION_SIDE, min_segment_size=MIN_SEGMENT
    ).segment_hashes
    segments = np.stack([each.hash.flatten() for each in hashes]).astype(np.float32) * 2 - 1
    scale = SIDE / max(image.size)
    size = [max(4, round(side * scale)) for side in image.size]
    return Look(segments, image.convert("L").resize((size[0], size[1]), Image.Resampling.BOX))


def looks_of(images: Sequence[Source], name: str) -> list[tuple[Source, Look]]:
    """Computes the looks of images, in order. Videos and broken images are skipped.

    Args:
        images: the images.
        name: name of the images in the progress bar.
    """
    found = []
    for source in progress_bar(images, total=len(images), desc=f"hashing {name}", unit="image", leave=False):
        if isinstance(source, VideoSource):
            continue
        try:
            pixels = source.open(MAX_PIXELS).pixels()
        except BrokenRecordError:
            continue
        found.append((source, look_of(Image.fromarray(pixels.permute(1, 2, 0).numpy()))))
    return found


def similar(
    images: Sequence[Look],
    other_images: Sequence[Look],
    min_correlation: float = MIN_CORRELATION,
) -> Iterator[tuple[int, int]]:
    """Yields pairs of images that look alike, as an index into ``images`` and an index into ``other_images``.

    Args:
        images: looks of some images.
        other_images: looks of the images to compare them with.
        min_correlation: :data:`MIN_CORRELATION` or :data:`WARN_CORRELATION`.
    """
    candidates = list(_candidates(images, other_images))
    for one, other in progress_bar(candidates, total=len(candidates), desc="comparing", unit="pair", leave=False):
        if correlation(images[one], other_images[other]) >= min_correlation:
            yield one, other


def _candidates(images: Sequence[Look], other_images: Sequence[Look]) -> Iterator[tuple[int, int]]:
    """Yields the pairs of images that have a similar segment. Distances are computed as matrix products with :data:`CHUNK`
    rows."""
    if not images or not other_images:
        return
    others, other_of = _stacked(other_images)
    rows, row_of = _stacked(images)
    seen: set[tuple[int, int]] = set()
    for start in range(0, len(rows), CHUNK):
        near = rows[start : start + CHUNK] @ others.T >= 64 - 2 * MAX_BITS
        pairs = {(int(row_of[start + row]), int(other_of[other])) for row, other in np.argwhere(near)}
        yield from sorted(pairs - seen)
        seen = pairs  # the segments of an image may be in two consecutive chunks


def _stacked(looks: Iterable[Look]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    segments = [look.segments for look in looks]
    return np.concatenate(segments), np.repeat(np.arange(len(segments)), [len(each) for each in segments])


def correlation(one: Look, other: Look) -> float:
    """Returns the maximum correlation between the middle of one image and a part of the other, over both directions and all
    :data:`SCALES`."""
    return max(_best(part, whole, scale) for part, whole in ((one, other), (other, one)) for scale in SCALES)


def _best(part: Look, whole: Look, scale: float) -> float:
    """Returns the maximum correlation of the middle of ``part`` in ``whole``, if the sides of ``part`` are ``scale`` times the
    sides of ``whole``."""
    factor = scale * (whole.pixels.size / part.pixels.size) ** 0.5
    width, height = part.grey.size
    size = round(MIDDLE * width * factor), round(MIDDLE * height * factor)
    if min(size) < 4 or size[0] > whole.grey.width or size[1] > whole.grey.height:
        return 0.0
    margin = (1 - MIDDLE) / 2
    box = margin * width, margin * height, (1 - margin) * width, (1 - margin) * height
    middle = np.asarray(part.grey.resize(size, Image.Resampling.BILINEAR, box=box), dtype=np.float64)
    middle = middle - middle.mean()
    floor = MIN_CONTRAST**2 * middle.size
    energy = (middle**2).sum()
    if energy < floor:
        return 0.0
    shape = whole.pixels.shape
    product = np.fft.irfft2(whole.spectrum * np.conj(np.fft.rfft2(middle, shape)), shape)
    rows, columns = shape[0] - size[1] + 1, shape[1] - size[0] + 1
    sums, squares = (_windows(table, size, rows, columns) for table in whole.sums)
    spread = np.maximum(squares - sums**2 / middle.size, floor)
    return float((product[:rows, :columns] / np.sqrt(spread * energy)).max())


def _windows(table: np.ndarray[Any, Any], size: tuple[int, int], rows: int, columns: int) -> np.ndarray[Any, Any]:
    """Computes the sum of each window of ``size``, width and height, from an integral image."""
    width, height = size
    found: np.ndarray[Any, Any] = (
        table[height : height + rows, width : width + columns]
        - table[:rows, width : width + columns]
        - table[height : height + rows, :columns]
        + table[:rows, :columns]
    )
    return found
