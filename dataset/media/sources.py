"""Images and videos that records contain or name, before they are read."""

from __future__ import annotations

import binascii
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dataset.broken import MediaError, json_type
from dataset.config import ImageIs
from dataset.files import IMAGE_BYTES, check_bytes, read_file
from dataset.media.encoded import EncodedImage, PixelState

_ENCODED_STARTS = ("/9j/", "iVBORw0KGgo", "UklGR", "R0lGOD", "Qk", "SUkq", "TU0AK")
_LONGEST_PATH = 1024


@dataclass(frozen=True)
class ImageSource:
    """An image that is loaded on demand: from bytes (``content``), from ``base64`` text, or from a ``path``. ``location`` is the
    location of the record that contains or names it."""

    location: str
    content: bytes | None = None
    path: Path | None = None
    base64: str | None = None

    def load(self) -> bytes:
        """Returns the encoded bytes.

        Raises:
            MediaError: "missing image" if the file does not exist or cannot be read; "unreadable image" if it is not a regular
                file or is larger than :data:`~dataset.files.IMAGE_BYTES`, or if the text is not base64.
        """
        if self.content is not None:
            return self.content
        if self.path is not None:
            return read_file(self.path, IMAGE_BYTES)
        assert self.base64 is not None
        text = self.base64.partition(",")[2] if self.base64.startswith("data:") else self.base64
        check_bytes(len(text) * 3 // 4, IMAGE_BYTES, "the base64 text")
        try:
            return binascii.a2b_base64(text)
        except ValueError as error:
            raise MediaError("unreadable image", f"not base64: {error}") from None

    def open(self, max_pixels: int, pixels: PixelState = "shown") -> EncodedImage:
        """Loads the bytes and reads the header. The arguments are the same as for :class:`~dataset.media.encoded.EncodedImage`.

        Raises:
            MediaError: the errors of :meth:`load` and of :class:`~dataset.media.encoded.EncodedImage`.
        """
        return EncodedImage(self.load(), max_pixels, pixels, self.path)


@dataclass(frozen=True)
class VideoSource:
    """A video that is read on demand, from a ``path`` (a video file, a JSON list of base64 images, or a folder of images) or
    from a list of ``frames``."""

    location: str
    path: Path | None = None
    frames: tuple[ImageSource, ...] = ()


def image_of(value: Any, key: str, location: str, folder: Path, image_is: ImageIs = "auto") -> ImageSource:
    """Returns the source of an image that is given as bytes, as a path relative to ``folder``, or as base64 text.

    With ``image_is="auto"``, a text is taken as base64 in three cases: it starts like an encoded JPEG, PNG, WebP, GIF, BMP or
    TIFF file and has no dot (base64 never has one, and nearly every file name does); it is a ``data:`` URL; or it is longer than
    any path.

    Args:
        value: the encoded file, the path, the base64 text, or a dictionary as in Hugging Face data
            sets: ``{"bytes": ..., "path": ...}``, in which the path is used only if ``bytes`` is missing.
        key: key of the record that contains the value, to name in error messages.
        location: location of the record.
        folder: folder that relative paths start from.
        image_is: whether the value is a path or base64 text.

    Raises:
        MediaError: "wrong type" or "missing image"; "unreadable image" if the image has more bytes than
            :data:`~dataset.files.IMAGE_BYTES`.
    """
    if isinstance(value, dict) and value.keys() <= {"bytes", "path"}:
        value = value.get("bytes") if value.get("bytes") is not None else value.get("path", "")
    if isinstance(value, bytes) and value:
        check_bytes(len(value), IMAGE_BYTES, key)
        return ImageSource(location, content=value)
    if not isinstance(value, str | bytes):
        raise MediaError("wrong type", f"{key} is {json_type(value)}, not a string or bytes")
    if not value:
        raise MediaError("missing image", f"{key} is empty")
    assert isinstance(value, str)
    if image_is == "base64" or (image_is == "auto" and _looks_encoded(value)):
        return ImageSource(location, base64=value)
    return ImageSource(location, path=folder / value)


def video_source(value: Any, key: str, location: str, folder: Path) -> VideoSource:
    """Returns the source of a video that is given as a path, or as a list of base64 images or paths of images.

    Args:
        value: the path or the list.
        key: key of the record that contains the value, to name in error messages.
        location: location of the record.
        folder: folder that relative paths start from.

    Raises:
        MediaError: "wrong type" or "missing video"; "unreadable video" for an empty list; or the errors of
            :func:`~dataset.media.sources.image_of`.
    """
    if isinstance(value, list):
        if not value:
            raise MediaError("unreadable video", f"{key} is an empty list")
        return VideoSource(location, frames=tuple(image_of(frame, f"{key}[…]", location, folder) for frame in value))
    if not isinstance(value, str):
        raise MediaError("wrong type", f"{key} is {value!r:.80}, neither a path nor a list of images")
    if not value:
        raise MediaError("missing video", f"{key} is empty")
    return VideoSource(location, path=folder / value)


def _looks_encoded(value: str) -> bool:
    if value.startswith("data:"):
        return True
    return "." not in value and (value.startswith(_ENCODED_STARTS) or len(value) > _LONGEST_PATH)
