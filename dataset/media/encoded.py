"""Encoded images: reads their headers, and decodes their pixels to uint8 tensors.

Decoded images are (3, H, W) uint8 RGB tensors, and stay uint8 until they are on the device.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import simplejpeg
import torch
from PIL import Image
from torch import Tensor

from dataset.broken import MediaError
from dataset.media.orientation import exif_orientation, jpeg_orientation, oriented

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
"""Formats that are opened, under Pillow's names. Pillow knows more formats, but some start programs (EPS: Ghostscript)."""

PixelState = Literal["shown", "unturned", "stored"]
"""How a file is converted to pixels. "shown": as people see the image, with its EXIF orientation applied and transparent pixels
on white. "unturned": with transparent pixels on white, but without the EXIF orientation, for images with boxes. "stored": without
the EXIF orientation and with the alpha channel dropped, as in the authors' code."""

_NOT_AN_IMAGE = f"not an image in a supported format ({', '.join(FORMATS)})"
_FRAME_HEADERS = (0xC0, 0xC1, 0xC2)
"""Markers of baseline, extended and progressive JPEG."""
_SKIPPED_SEGMENTS = (*range(0xE0, 0xF0), 0xC4, 0xDB, 0xDD, 0xFE)
"""Markers of application data, tables, restart intervals and comments."""
_END_OF_JPEG = b"\xff\xd9"
_BLOCK_ROWS = 16
"""Number of pixel rows that a JPEG decoder decodes together if colours are stored at half the height."""


class JPEGFrame(NamedTuple):
    """Frame header of a JPEG file.

    Attributes:
        at: offset of the frame header in the file.
    """

    at: int
    width: int
    height: int
    components: int
    """1 for grey images, 3 for colour images, 4 for CMYK images."""


class EncodedImage:
    """An encoded image. Its header is read immediately, and its pixels are decoded on demand.

    Grey, CMYK, palette and 16-bit images become 8-bit RGB. The first frame of an animation is used. (Pillow itself applies the
    orientation of a TIFF file.)

    Boxes refer to the stored pixels: pycocotools, the ``refer`` package, Visual Genome's driver and the authors' readers all open
    files without applying the EXIF orientation, and the sizes in COCO's annotations refer to the stored pixels. Code that
    reads boxes must therefore request "unturned" or "stored" pixels (:func:`for_boxes`).

    Args:
        content: content of the file.
        max_pixels: maximum number of pixels in an image.
        pixels: see :data:`PixelState`.
        file: path of the image file, to name in error messages; None if the bytes are not from a file.

    Raises:
        MediaError: "image too large" if the image has more than ``max_pixels`` according to its header (it is not
            decoded); "unreadable image" if the bytes are not an image.
    """

    def __init__(self, content: bytes, max_pixels: int, pixels: PixelState = "shown", file: Path | None = None):
        self.content, self.on_white = content, pixels != "stored"
        self._name = "" if file is None else f"{file}: "
        self._frame = jpeg_frame(content)
        self._header = self._open() if self._frame is None else None
        width, height = self._header.size if self._header is not None else self._frame[1:3]  # type: ignore[index]
        self.orientation = self._orientation() if pixels == "shown" else 1
        self.shape = (3, height, width) if self.orientation < 5 else (3, width, height)
        """Shape of the image as a tensor."""
        if width * height > max_pixels:
            raise MediaError(
                "image too large",
                f"{self._name}{width} x {height} pixels, more than max_pixels = {max_pixels}",
            )

    def rows(self, count: int) -> Tensor:
        """Decodes at least the first ``count`` rows of pixels. Returns (3, H, W) uint8 with H at least ``count``.

        The rows below are not decoded if the image is a JPEG file without rotation.

        Raises:
            MediaError: "unreadable image" if the image cannot be decoded or its end is missing.
        """
        try:
            if self.orientation > 1:
                return oriented(self._decode(max(self.shape)), self.orientation)
            return self._decode(count)
        except MediaError:
            raise
        except Exception as error:  # readers raise many types of errors on malformed bytes
            raise self._unreadable(error) from None

    def pixels(self) -> Tensor:
        """Decodes the whole image, (3, H, W) uint8; raises the same errors as :meth:`rows`."""
        return self.rows(self.shape[1])

    def _orientation(self) -> int:
        if self._frame is not None:
            return jpeg_orientation(self.content, self._frame.at)
        assert self._header is not None
        if self._header.format == "TIFF":
            return 1  # Pillow applies the orientation when it decodes
        return exif_orientation(self._header.info.get("exif") or b"")

    def _open(self) -> Image.Image:
        """Opens the image with Pillow, which reads the header without decoding."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Pillow has its own size limit, at which it warns
                return Image.open(io.BytesIO(self.content), formats=FORMATS)
        except Image.DecompressionBombError as error:
            raise MediaError("image too large", f"{self._name}{error}") from None
        except Exception as error:  # Pillow's readers raise many types of errors on malformed bytes
            raise self._unreadable(error) from None

    def _unreadable(self, error: Exception) -> MediaError:
        message = f"{self._name}{len(self.content)} bytes: {image_fault(error)}"
        return MediaError("unreadable image", message)

    def _decode(self, rows: int) -> Tensor:
        if self._frame is not None:
            if self.content.rfind(_END_OF_JPEG) < self._frame.at:
                raise ValueError("the end of the JPEG file is missing")
            if self._frame.components != 4:  # simplejpeg rounds CMYK differently from Pillow
                with contextlib.suppress(ValueError):  # subsampling that TurboJPEG does not support
                    return _decode_jpeg(self.content, self._frame, rows)
        return rgb_of(self._header or self._open(), self.on_white)


def decode(content: bytes, max_pixels: int, pixels: PixelState = "shown", file: Path | None = None) -> Tensor:
    """Decodes an image file's bytes to (3, H, W) uint8 RGB. Arguments and exceptions are those of :class:`EncodedImage`."""
    return EncodedImage(content, max_pixels, pixels, file).pixels()


def rgb_of(image: Image.Image, on_white: bool) -> Tensor:
    """Returns the pixels of a Pillow image, (3, H, W) uint8 RGB. With ``on_white``, transparent pixels are put on white;
    otherwise, the alpha channel is dropped."""
    if on_white and _is_transparent(image):
        return _on_white(image)
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))  # convert would clip instead
    if image.mode != "RGB":  # convert would copy
        image = image.convert("RGB")
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def for_boxes(pixels: PixelState) -> PixelState:
    """Returns how to decode images with boxes if other images are decoded as ``pixels``. Images with boxes are never rotated."""
    return "unturned" if pixels == "shown" else pixels


def pixels_of(image: Tensor | EncodedImage) -> Tensor:
    """Returns all pixels of an image, (3, H, W) uint8. An encoded image is decoded, which raises the errors of
    :meth:`EncodedImage.rows`."""
    return image.pixels() if isinstance(image, EncodedImage) else image


def encode_jpeg(image: Tensor, quality: int) -> bytes:
    """Encodes an image, (3, H, W) uint8 RGB, as JPEG, with colours at half the width and height (4:2:0) as in photographs."""
    channels_last = image.permute(1, 2, 0).contiguous().numpy()
    content: bytes = simplejpeg.encode_jpeg(channels_last, quality=quality, colorspace="RGB", colorsubsampling="420")
    return content


def crop(image: Tensor | EncodedImage, top: int, left: int, height: int, width: int) -> Tensor:
    """Returns a crop of an image, (3, ``height``, ``width``) uint8. An encoded image is only decoded down to the bottom of the
    crop."""
    pixels = image.rows(top + height) if isinstance(image, EncodedImage) else image
    return pixels[:, top : top + height, left : left + width]


def jpeg_frame(content: bytes) -> JPEGFrame | None:
    """Returns the frame header of a JPEG file, or None for other formats.

    It also returns None for rare types of JPEG (several images in one file, lossless and arithmetic coding), which Pillow decodes
    ten times more slowly.
    """
    at = 2 if content.startswith(b"\xff\xd8") else len(content)
    while at + 9 < len(content) and content[at] == 0xFF:
        marker, length = content[at + 1], int.from_bytes(content[at + 2 : at + 4], "big")
        if marker in _FRAME_HEADERS:
            height, width = (int.from_bytes(content[at + start : at + start + 2], "big") for start in (5, 7))
            return JPEGFrame(at, width, height, content[at + 9]) if width and height else None
        if marker not in _SKIPPED_SEGMENTS or content.startswith(b"MPF\0", at + 4):
            return None
        at += 2 + length
    return None


def _decode_jpeg(content: bytes, frame: JPEGFrame, rows: int) -> Tensor:
    """Decodes at least the first ``rows`` rows of a JPEG file, and at most one block of rows more.

    The height in the frame header is changed to the number of rows to decode. libjpeg then warns of extra data after the end, as
    it does for other errors that it can correct, so ``strict`` is False, as in Pillow. The colours of the last decoded row are
    interpolated only within its block, so one more row than needed is decoded. (If a progressive file contains only its coarsest
    scan, libjpeg smooths across blocks, and the last rows may differ from those of the whole image.)
    """
    height = (rows // _BLOCK_ROWS + 1) * _BLOCK_ROWS
    data: bytes | bytearray = content
    if height < frame.height:
        data = bytearray(content)
        data[frame.at + 5 : frame.at + 7] = height.to_bytes(2, "big")
    return torch.from_numpy(simplejpeg.decode_jpeg(data, "RGB", strict=False)).permute(2, 0, 1)


def _is_transparent(header: Image.Image) -> bool:
    return header.mode in ("RGBA", "LA", "PA", "RGBa", "La") or (
        "transparency" in header.info and not header.mode.startswith("I")
    )


def _on_white(header: Image.Image) -> Tensor:
    image = header.convert("RGBA")
    canvas = Image.new("RGB", image.size, "white")
    canvas.paste(image, mask=image.getchannel("A"))
    return torch.from_numpy(np.array(canvas)).permute(2, 0, 1)


def image_fault(error: Exception) -> str:
    """Returns the reason why an image cannot be read, without the names of Python objects."""
    return _NOT_AN_IMAGE if isinstance(error, Image.UnidentifiedImageError) else str(error).split("\n")[0][:120]
