"""Embeds images in a page as base64, with a limit on their total size."""

from __future__ import annotations

import base64
import io
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from dataset.media.encoded import FORMATS
from tasks.drawing import DrawnImage
from tasks.drawing.boxes import draw_boxes

SIDE = 340
"""Maximum length of an example's longer side, in pixels."""
SHEET = (1100, 4000)
"""Maximum width and height, in pixels, of a sheet of predictions that the run itself has drawn."""
PAGE_BYTES = 7_000_000
"""Maximum total number of base64 characters of all images on a page."""
QUALITY = 82

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Embedded:
    """An image as a data URL."""

    url: str
    width: int
    height: int


@dataclass(frozen=True)
class Picture:
    """An image in an example.

    Attributes:
        right: whether the image is framed as a right answer.
    """

    image: Embedded
    label: str
    right: bool


class Room:
    """Limits the total size of the images in a page by counting their characters.

    Attributes:
        left_out: number of images that exceeded the limit.
    """

    def __init__(self, size: int = PAGE_BYTES):
        self.left, self.left_out = size, 0

    def embed(self, image: Image.Image) -> Embedded | None:
        """Returns an image as a data URL, or None if the image would exceed the limit."""
        kind, text = _encoded(image)
        if len(text) > self.left:
            self.left_out += 1
            return None
        self.left -= len(text)
        return Embedded(f"data:image/{kind};base64,{text}", *image.size)

    def share(self, count: int) -> Room:
        """Reserves an equal share of the remaining characters for one of ``count`` parts of the page."""
        part = Room(self.left // max(1, count))
        self.left -= part.left
        return part

    def give_back(self, part: Room) -> None:
        """Takes back the characters that a part of the page did not use."""
        self.left, self.left_out = self.left + part.left, self.left_out + part.left_out


def sheet(path: Path, room: Room) -> Embedded | None:
    """Returns the sheet of predictions that a run itself has drawn, scaled down, or None if it cannot be read or would exceed the
    limit."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            image.thumbnail(SHEET)
            return room.embed(image.convert("RGB"))
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        logger.warning("%s: cannot be read: %s", path, error)
        return None


def pictures_of(drawn: Sequence[DrawnImage], room: Room, side: int = SIDE) -> list[Picture]:
    """Returns images with their boxes, at most ``side`` pixels high and wide, until the limit is reached."""
    found = []
    for one in drawn:
        image = Image.fromarray(np.ascontiguousarray(one.pixels))
        draw_boxes(image, one.boxes)
        image.thumbnail((side, side) if image.width <= 2 * image.height else (2 * side, side))
        if (embedded := room.embed(image)) is not None:
            found.append(Picture(embedded, one.label, one.right))
    return found


def _encoded(image: Image.Image) -> tuple[str, str]:
    """Encodes the image as PNG or JPEG, whichever is smaller. Returns the base64 text and the format."""
    files = {}
    for kind, options in (("jpeg", {"quality": QUALITY}), ("png", {"optimize": True})):
        if kind == "png" and image.width * image.height > 400_000:
            continue
        file = io.BytesIO()
        image.save(file, format=kind.upper(), **options)
        files[kind] = file.getvalue()
    kind = min(files, key=lambda name: len(files[name]))
    return kind, base64.b64encode(files[kind]).decode("ascii")
