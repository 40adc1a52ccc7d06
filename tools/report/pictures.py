"""Embeds images in a page as base64, with a limit on their total size."""

from __future__ import annotations

import base64
import io
import logging
from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image

from dataset.media.encoded import FORMATS
from tasks.drawing import DrawnImage, Line, Panel
from tasks.drawing.boxes import draw_boxes

SIDE = 340
"""Maximum length of an example's longer side, in pixels."""
SHEET = (1100, 4000)
"""Maximum width and height of a run's own sheet of predictions, in pixels."""
PAGE_BYTES = 7_000_000
"""Maximum number of base64 characters of all images in a page."""
QUALITY = 82

logger = logging.getLogger(__name__)


class Room:
    """Counts the characters of the images in a page. ``left_out``: number of images that exceeded the limit."""

    def __init__(self, size: int = PAGE_BYTES):
        self.left, self.left_out = size, 0

    def image(self, image: Image.Image, alt: str = "") -> str:
        """Returns an image as HTML; empty if it exceeds the limit."""
        kind, text = _encoded(image)
        if len(text) > self.left:
            self.left_out += 1
            return ""
        self.left -= len(text)
        width, height = image.size
        return f'<img width="{width}" height="{height}" alt="{escape(alt)}" src="data:image/{kind};base64,{text}">'

    def share(self, of: int) -> Room:
        """Reserve an equal share of the remaining room for one of ``count`` parts."""
        part = Room(self.left // max(1, of))
        self.left -= part.left
        return part

    def give_back(self, part: Room) -> None:
        """Return the room that a part did not use."""
        self.left, self.left_out = self.left + part.left, self.left_out + part.left_out


def card(panel: Panel, number: int, right: bool | None, room: Room) -> str:
    """An example: texts above its images, the images side by side, texts below."""
    images = figures(panel.pictures, room)
    above, below = (f"<div>{''.join(map(_line, lines))}</div>" if lines else "" for lines in (panel.above, panel.lines))
    kind = {True: " right", False: " wrong", None: ""}[right]
    body = above + images + below
    if panel.beside and images:
        body = f'{above}<div class="beside">{images}{below}</div>'
    return f'<div class="card{kind}"><span class="number">{number}</span>{body}</div>'


def sheet(path: Path, room: Room) -> str:
    """The sheet of predictions that a run drew itself, scaled down; empty if it cannot be read."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            image.thumbnail(SHEET)
            return room.image(image.convert("RGB"), path.name)
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        logger.warning("%s: cannot be read: %s", path, error)
        return ""


def figures(pictures: Sequence[DrawnImage], room: Room, side: int = SIDE) -> str:
    """Images side by side with their boxes, at most ``side`` pixels high and wide; empty if no image has room."""
    images = "".join(_figure(picture, room, side) for picture in pictures)
    return f'<div class="images">{images}</div>' if images else ""


def _figure(picture: DrawnImage, room: Room, side: int) -> str:
    image = Image.fromarray(np.ascontiguousarray(picture.pixels))
    draw_boxes(image, picture.boxes)
    image.thumbnail((side, side) if image.width <= 2 * image.height else (2 * side, side))
    drawn = room.image(image)
    if not drawn:
        return ""
    label = f"<figcaption>{'✓ ' if picture.right else ''}{escape(picture.label)}</figcaption>" if picture.label else ""
    return f'<figure class="image{" right" if picture.right else ""}">{drawn}{label}</figure>'


def _line(line: Line) -> str:
    mark = {True: '<b class="yes">✓</b> ', False: '<b class="no">✗</b> ', None: ""}[line.right]
    key = ""
    if line.key is not None:
        colour, number = line.key
        key = f'<i class="box" style="background:{escape(colour)}">{escape(number)}</i> '
    return f"<p{' class=faint' if line.faint else ''}>{mark}{key}{escape(line.text)}</p>"


def _encoded(image: Image.Image) -> tuple[str, str]:
    """Encodes the image as PNG or JPEG, whichever is smaller; returns the bytes and the format."""
    files = {}
    for kind, options in (("jpeg", {"quality": QUALITY}), ("png", {"optimize": True})):
        if kind == "png" and image.width * image.height > 400_000:
            continue
        file = io.BytesIO()
        image.save(file, format=kind.upper(), **options)
        files[kind] = file.getvalue()
    kind = min(files, key=lambda name: len(files[name]))
    return kind, base64.b64encode(files[kind]).decode("ascii")
