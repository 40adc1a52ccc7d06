"""The image augmentation of the authors' code, for (3, H, W) uint8 tensors. Images are normalised later, on the device.

All random numbers come from the generator that the caller passes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from dataset.config import AugmentConfig
from dataset.media.encoded import EncodedImage, crop, pixels_of
from utils.image_size import ImageSize, NativeSize, sides_for, sides_of

FILL = 128
"""Grey level of the pixels that geometric operations move in from outside the image."""

_CROP_ATTEMPTS = 10
_LEVELS = np.arange(256)

_FRAME = 2
"""Width in pixels of the border (filled with :data:`FILL`) around a warped image. Both neighbours of a position outside the image
lie in this border."""
_CHANNEL_BITS, _WEIGHT_BITS = np.uint64(21), np.uint64(10)
_EACH_CHANNEL = np.uint64(1 | 1 << 21 | 1 << 42)
_HALF = np.uint64(512)
"""Half of 1024, the sum of the weights. It is added before the division, so that the result is rounded to the nearest integer."""

Planes = np.ndarray
"""(3, H, W) uint8, contiguous."""
Affine = tuple[float, float, float, float, float, float]


def random_resized_crop(
    image: Tensor | EncodedImage, size: ImageSize, config: AugmentConfig, rng: np.random.Generator
) -> Tensor:
    """Crops a random part of ``image`` and resizes it to ``size``, with antialiased bicubic interpolation. Returns (3, H, W). If
    images keep their aspect ratio, ``config.ratio`` is relative to the image's ratio."""
    height, width = image.shape[1:] if isinstance(size, NativeSize) else sides_of(size)
    part = draw_crop(image.shape[1], image.shape[2], config, rng, width / height)
    return resize(crop(image, *part), size)


def draw_crop(
    height: int, width: int, config: AugmentConfig, rng: np.random.Generator, aspect: float = 1.0
) -> tuple[int, int, int, int]:
    """Draws a random crop of an image, for a model input whose ratio of width to height is ``aspect``.

    The area is uniform in ``config.scale``, and the ratio is log-uniform in ``config.ratio``. If ten draws do not fit into the
    image, the largest central crop with an allowed ratio is used (like torchvision's ``RandomResizedCrop``).

    Returns:
        Top, left, height and width.
    """
    min_ratio, max_ratio = (aspect * ratio for ratio in config.ratio)
    low, high = math.log(min_ratio), math.log(max_ratio)
    for _ in range(_CROP_ATTEMPTS):
        area = height * width * rng.uniform(*config.scale)
        ratio = math.exp(rng.uniform(low, high))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
    w = min(width, max(1, round(height * max_ratio)))
    h = min(height, max(1, round(width / min_ratio)))
    return (height - h) // 2, (width - w) // 2, h, w


def resize(image: Tensor, size: ImageSize) -> Tensor:
    """Resizes an image, (3, H, W) uint8, to ``size``, with antialiased bicubic interpolation. Returns (3, h, w) uint8. If
    ``size`` is fixed, the aspect ratio may change. With a native size, it only changes because the sides are rounded to whole
    patches."""
    height, width = sides_for(size, image.shape[1], image.shape[2])
    if tuple(image.shape[1:]) == (height, width):
        return image
    # Decoded images have their channels last, which interpolate keeps. Other layouts would be converted twice.
    batch = image.unsqueeze(0).contiguous(memory_format=torch.channels_last)
    return interpolate(batch, [height, width], mode="bicubic", antialias=True)[0]


def shrink(image: Tensor, short_side: int) -> Tensor:
    """Shrinks an image, (3, H, W) uint8, by antialiased bicubic interpolation, so that its shorter side is at most
    ``short_side``.

    The aspect ratio is kept. A smaller image is returned unchanged.
    """
    height, width = image.shape[1:]
    scale = short_side / min(height, width)
    return image if scale >= 1 else resize(image, (round(scale * height), round(scale * width)))


def evaluation_view(image: Tensor | EncodedImage, size: ImageSize) -> Tensor:
    """Resizes the whole image to ``size``, without a centre crop, as in the authors' code."""
    return resize(pixels_of(image), size).contiguous()


def hflip(image: Tensor) -> Tensor:
    """Mirrors an image from left to right."""
    return image.flip(-1)


class RandAugment:
    """The authors' RandAugment: operations drawn with replacement, each applied with probability 0.5.

    The operations are Identity, AutoContrast, Equalize, Brightness, Sharpness, ShearX, ShearY, TranslateX, TranslateY and Rotate.
    Geometric operations have a random sign. On test values computed with the authors' code, all operations agree exactly except
    Sharpness, which clips values that overflow in the authors' code.

    Args:
        ops: number of operations per image.
        magnitude: strength of the operations, from 0 to 10. At 7, colour factors are 1.36, shears 0.21, shifts 7 px, and angles
            21 degrees.
        colour_only: whether to omit the geometric operations, which would move objects out of their boxes.
    """

    def __init__(self, ops: int, magnitude: int, *, colour_only: bool = False):
        self.ops = ops
        self.choices = [*COLOUR_OPS] if colour_only else [*COLOUR_OPS, *GEOMETRIC_OPS]
        strength = magnitude / 10
        self.factor = 0.1 + 1.8 * strength
        self.amounts = {"Shear": 0.3 * strength, "Translate": 10 * strength, "Rotate": 30 * strength}

    def __call__(self, image: Tensor, rng: np.random.Generator) -> Tensor:
        """Augments (3, H, W) uint8; returns the same shape."""
        for _ in range(self.ops):
            name = self.choices[int(rng.integers(len(self.choices)))]
            sign = 1 if rng.random() < 0.5 else -1
            if rng.random() < 0.5:
                image = self.apply(name, image, sign)
        return image

    def apply(self, name: str, image: Tensor, sign: int = 1) -> Tensor:
        """Applies one operation at the configured strength. ``sign`` (1 or -1) affects only geometric operations."""
        if name == "Identity":
            return image
        planes = image.contiguous().numpy()
        if name in COLOUR_OPS:
            return torch.from_numpy(COLOUR_OPS[name](planes, self.factor))
        amount = sign * self.amounts[name.rstrip("XY")]
        return torch.from_numpy(GEOMETRIC_OPS[name](planes, amount))


def _auto_contrast(planes: Planes, _: float) -> Planes:
    """Stretches each channel to 0 … 255."""
    tables = []
    for low, high in ((int(plane.min()), int(plane.max())) for plane in planes):
        scale = 255 / (high - low) if high > low else 1.0
        tables.append((_LEVELS * scale - (low * scale if high > low else 0)).clip(0, 255))
    return _look_up(planes, tables)


def _equalize(planes: Planes, _: float) -> Planes:
    """Flattens the histogram of each channel. As in the authors' code, pixels at the highest level that occurs are not counted
    when the step is computed."""
    tables = []
    for plane in planes:
        histogram = np.array(Image.fromarray(plane).histogram())  # twice as fast as numpy's bincount
        step = int(histogram[histogram > 0][:-1].sum()) // 255
        if step == 0:
            tables.append(_LEVELS)
            continue
        below = np.concatenate([[step // 2], histogram[:-1]])
        tables.append((np.cumsum(below) // step).clip(0, 255))
    return _look_up(planes, tables)


def _brightness(planes: Planes, factor: float) -> Planes:
    table = (_LEVELS.astype(np.float32) * factor).clip(0, 255)
    return _look_up(planes, [table] * 3)


def _sharpness(planes: Planes, factor: float) -> Planes:
    """Sharpens: extrapolates from a smoothed copy to the image and (with ``factor`` > 1) beyond it. The smoothing kernel is 3 x
    3, with weight 5 in the middle and weights 1 around it.

    The outermost pixels are unchanged.
    """
    wide = planes.astype(np.int16)
    rows = wide[:, :-2] + wide[:, 1:-1]
    rows += wide[:, 2:]
    box = rows[:, :, :-2] + rows[:, :, 1:-1]
    box += rows[:, :, 2:]
    middle = wide[:, 1:-1, 1:-1]
    smooth = (((box + 4 * middle).astype(np.uint16) * 2 + 13) // 26).astype(np.float32)
    sharp = smooth + np.float32(factor) * (middle - smooth)
    out = planes.copy()
    out[:, 1:-1, 1:-1] = sharp.clip(0, 255)
    return out


def _look_up(planes: Planes, tables: Sequence[np.ndarray]) -> Planes:
    out = np.empty_like(planes)
    for plane, table, target in zip(planes, tables, out, strict=True):
        # bytes.translate is twice as fast as indexing an array by an array.
        translated = plane.tobytes().translate(table.astype(np.uint8).tobytes())
        target[:] = np.frombuffer(translated, np.uint8).reshape(target.shape)
    return out


def _translate(planes: Planes, x: int, y: int) -> Planes:
    """Moves the planes so that the pixel at (x, y) moves to (0, 0)."""
    _, height, width = planes.shape
    out = np.full_like(planes, FILL)
    kept_w, kept_h = max(width - abs(x), 0), max(height - abs(y), 0)
    to_x, to_y, from_x, from_y = max(-x, 0), max(-y, 0), max(x, 0), max(y, 0)
    out[:, to_y : to_y + kept_h, to_x : to_x + kept_w] = planes[:, from_y : from_y + kept_h, from_x : from_x + kept_w]
    return out


def _rotate(planes: Planes, degrees: float) -> Planes:
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    x, y = planes.shape[2] / 2, planes.shape[1] / 2
    return _warp(planes, (cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y))


def _warp(planes: Planes, source: Affine) -> Planes:
    """Warps the planes: the pixel at (x, y) is read from (a x + b y + c, d x + e y + f). The first pixel is at (0, 0).

    Interpolation is bilinear with a resolution of 1/32 pixel and OpenCV's rounding; pixels outside the image are :data:`FILL`.
    The three channels of a pixel are packed into one 64-bit integer, 21 bits each, so that they are gathered and weighted
    together.
    """
    _, height, width = planes.shape
    row = width + 2 * _FRAME
    packed = np.full((height + 2 * _FRAME, row), FILL * _EACH_CHANNEL, np.uint64)
    inner = packed[_FRAME:-_FRAME, _FRAME:-_FRAME]
    inner[:] = planes[2]
    for plane in (planes[1], planes[0]):
        inner <<= _CHANNEL_BITS
        inner |= plane
    flat = packed.ravel()
    indices, weights = _bilinear(source, height, width)
    indices = indices.astype(np.intp)
    total = np.full(height * width, _HALF * _EACH_CHANNEL, np.uint64)
    for offset, weight in zip((0, 1, row, row + 1), weights, strict=True):
        if weight is not None:
            total += flat[offset:].take(indices) * weight
    total >>= _WEIGHT_BITS
    out = np.empty((3, height * width), np.uint8)
    for plane in out:
        plane[:] = total  # keeps the lowest byte
        total >>= _CHANNEL_BITS
    return out.reshape(planes.shape)


@lru_cache(maxsize=128)
def _bilinear(source: Affine, height: int, width: int) -> tuple[np.ndarray, list[np.ndarray | None]]:
    """Computes the neighbours and weights of bilinear interpolation. Results are cached, because the augmentation of a run uses
    only six different maps for each size of image.

    Returns:
        For each pixel, the flat index of its source position's upper left neighbour in the image with a border; and the weights
        of the four neighbours (upper left, upper right, lower left, lower right), which sum to 1024. If all weights of a
        neighbour are zero, they are None.
    """
    a, b, c, d, e, f = source
    columns, rows = np.arange(width), np.arange(height)[:, None]
    # OpenCV adds fixed-point numbers with 10 fractional bits, each rounded separately, and then keeps five bits.
    x = np.rint(a * columns * 1024).astype(int) + np.rint((b * rows + c) * 1024).astype(int) + 16 >> 5
    y = np.rint(d * columns * 1024).astype(int) + np.rint((e * rows + f) * 1024).astype(int) + 16 >> 5
    left, top = (x >> 5).clip(-_FRAME, width), (y >> 5).clip(-_FRAME, height)
    indices = (top + _FRAME) * (width + 2 * _FRAME) + left + _FRAME
    right, low = x & 31, y & 31
    weights = [(v * h).astype(np.uint16).ravel() for v in (32 - low, low) for h in (32 - right, right)]
    return indices.astype(np.int32).ravel(), [weight if weight.any() else None for weight in weights]


COLOUR_OPS: dict[str, Callable[[Planes, float], Planes]] = {
    "Identity": lambda planes, _: planes,
    "AutoContrast": _auto_contrast,
    "Equalize": _equalize,
    "Brightness": _brightness,
    "Sharpness": _sharpness,
}
GEOMETRIC_OPS: dict[str, Callable[[Planes, float], Planes]] = {
    "ShearX": lambda planes, amount: _warp(planes, (1, -amount, 0, 0, 1, 0)),
    "ShearY": lambda planes, amount: _warp(planes, (1, 0, 0, -amount, 1, 0)),
    "TranslateX": lambda planes, amount: _translate(planes, round(amount), 0),
    "TranslateY": lambda planes, amount: _translate(planes, 0, round(amount)),
    "Rotate": _rotate,
}
