"""Draws a sheet of panels on white. A panel shows images with boxes, and lines of text marked as correct or wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from tasks.drawing.boxes import PairOfBoxes, draw_boxes
from tasks.drawing.fonts import lettering
from utils.files import replacing

WIDEST = 1560
"""Maximum width of a sheet with several columns, in pixels."""
TEXT_WIDTH = 320
"""Minimum width of the text in a panel, in pixels."""
PADDING, GAP = 14, 10
INK, FAINT, RULE = "#1f2328", "#57606a", "#d0d7de"
RIGHT, WRONG = "#1a7f37", "#cf222e"
TITLE, TEXT, SMALL_TEXT = 18, 15, 12
FRAME = 4
"""Width of the frame around an image, in pixels."""
MARK = 20
"""Width of the mark before a line, in pixels."""


@dataclass(frozen=True)
class DrawnImage:
    """An image with boxes.

    Attributes:
        pixels: (H, W, 3) uint8.
        boxes: the boxes to draw.
        label: short text below the image.
        right: True to frame the image as a correct answer.
    """

    pixels: np.ndarray
    boxes: tuple[PairOfBoxes, ...] = ()
    label: str = ""
    right: bool = False


@dataclass(frozen=True)
class Line:
    """A line of text, which is wrapped if needed.

    Attributes:
        text: the text.
        right: True to mark it with a tick, False to mark it with a cross, None for no mark.
        key: colour and number of a phrase in the image.
        faint: True to draw it in grey.
    """

    text: str
    right: bool | None = None
    key: tuple[str, str] | None = None
    faint: bool = False


@dataclass(frozen=True)
class Panel:
    """An example: images side by side, with lines of text.

    Attributes:
        pictures: the images.
        lines: lines below the images.
        above: lines above the images.
        beside: True to draw ``lines`` to the right of the images instead of below them.
    """

    pictures: tuple[DrawnImage, ...]
    lines: tuple[Line, ...]
    above: tuple[Line, ...] = ()
    beside: bool = False


@dataclass(frozen=True)
class Sheet:
    """Panels below a title and a legend."""

    title: str
    legend: str
    panels: Sequence[Panel]


def draw_sheet(sheet: Sheet, path: Path) -> np.ndarray:
    """Writes the sheet as a PNG file and returns it, (H, W, 3) uint8. All panels have the same width. They are ordered row by
    row, and each panel is drawn directly below the previous panel of its column."""
    width = max(_width(panel) for panel in sheet.panels)
    drawn = [_draw_panel(panel, width) for panel in sheet.panels]
    columns = max(1, min(len(drawn), (WIDEST - GAP) // (width + GAP)))
    total = columns * (width + GAP) + GAP
    title, legend = (
        lettering(size).wrap(text, total - 2 * GAP) if sheet.title or sheet.legend else []
        for size, text in ((TITLE, sheet.title), (TEXT, sheet.legend))
    )
    heading = len(title) * lettering(TITLE).line_height + len(legend) * lettering(TEXT).line_height
    top = GAP + heading + (GAP if heading else 0)
    bottoms = [top] * columns
    positions = []
    for number, panel in enumerate(drawn):
        column = number % columns
        positions.append((GAP + column * (width + GAP), bottoms[column]))
        bottoms[column] += panel.height + GAP
    image = Image.new("RGB", (total, max(bottoms)), "white")
    for panel, position in zip(drawn, positions, strict=True):
        image.paste(panel, position)
    canvas = ImageDraw.Draw(image)
    y = _draw_texts(canvas, (GAP, GAP), title, TITLE, INK)
    _draw_texts(canvas, (GAP, y), legend, TEXT, FAINT)
    with replacing(path) as temporary:
        image.save(temporary, format="PNG")
    return np.asarray(image)


def _width(panel: Panel) -> int:
    """Returns the width that a panel needs, including padding."""
    pictures = _pictures_width(panel)
    return 2 * PADDING + (pictures + 2 * GAP + TEXT_WIDTH if panel.beside else max(TEXT_WIDTH, pictures))


def _pictures_width(panel: Panel) -> int:
    return sum(picture.pixels.shape[1] + 2 * FRAME for picture in panel.pictures) + GAP * (len(panel.pictures) - 1)


def _draw_panel(panel: Panel, width: int) -> Image.Image:
    """Draws a panel at its full height."""
    inner = width - 2 * PADDING
    pictures = _draw_pictures(panel.pictures)
    beside = inner - pictures.width - 2 * GAP
    above = _draw_lines(panel.above, inner)
    lines = _draw_lines(panel.lines, beside if panel.beside else inner)
    gap = GAP if panel.above else 0
    below = (
        max(pictures.height, lines.height) if panel.beside else pictures.height + lines.height + GAP * bool(panel.lines)
    )
    image = Image.new("RGB", (width, 2 * PADDING + above.height + gap + below), "white")
    image.paste(above, (PADDING, PADDING))
    y = PADDING + above.height + gap
    image.paste(pictures, (PADDING, y))
    image.paste(
        lines, (PADDING + pictures.width + 2 * GAP, y) if panel.beside else (PADDING, y + pictures.height + GAP)
    )
    ImageDraw.Draw(image).rectangle((0, 0, image.width - 1, image.height - 1), outline=RULE)
    return image


def _draw_pictures(pictures: Sequence[DrawnImage]) -> Image.Image:
    drawn = [_draw_picture(picture) for picture in pictures]
    width = sum(image.width for image in drawn) + GAP * (len(drawn) - 1)
    row = Image.new("RGB", (max(1, width), max((image.height for image in drawn), default=0)), "white")
    x = 0
    for image in drawn:
        row.paste(image, (x, 0))
        x += image.width + GAP
    return row


def _draw_picture(picture: DrawnImage) -> Image.Image:
    """Draws an image at its original size with its label below it. The frame of a correct answer is green."""
    image = Image.fromarray(picture.pixels)
    draw_boxes(image, picture.boxes)
    width, height = image.width + 2 * FRAME, image.height + 2 * FRAME
    letters = lettering(SMALL_TEXT)
    label = letters.wrap(picture.label, width - MARK) if picture.label else []
    framed = Image.new("RGB", (width, height + len(label) * letters.line_height), "white")
    canvas = ImageDraw.Draw(framed)
    if picture.right:
        canvas.rectangle((0, 0, width - 1, height - 1), fill=RIGHT)
    else:
        canvas.rectangle((FRAME - 1, FRAME - 1, width - FRAME, height - FRAME), outline=RULE)
    framed.paste(image, (FRAME, FRAME))
    indent = FRAME
    if picture.right and label:
        _mark(canvas, (FRAME, height + 3), right=True)
        indent += MARK
    _draw_texts(canvas, (indent, height), label, SMALL_TEXT, RIGHT if picture.right else FAINT)
    return framed


def _draw_lines(lines: Sequence[Line], width: int) -> Image.Image:
    """Draws the complete text of all lines, below each other."""
    letters = lettering(TEXT)
    texts = [letters.wrap(line.text, width - _indent(line)) for line in lines]
    height = sum(len(text) * letters.line_height + 2 for text in texts)
    image = Image.new("RGB", (width, height), "white")
    canvas = ImageDraw.Draw(image)
    y = 0
    for line, text in zip(lines, texts, strict=True):
        x = 0
        if line.right is not None:
            _mark(canvas, (x, y + 3), right=line.right)
            x += MARK
        if line.key is not None:
            _draw_key(canvas, (x, y + 2), *line.key)
        y = _draw_texts(canvas, (_indent(line), y), text, TEXT, FAINT if line.faint else INK) + 2
    return image


def _indent(line: Line) -> int:
    return (MARK if line.right is not None else 0) + (_key_width(line.key[1]) + 6 if line.key is not None else 0)


def _key_width(number: str) -> int:
    return max(14, round(lettering(SMALL_TEXT).width(number)) + 8)


def _draw_key(canvas: ImageDraw.ImageDraw, at: tuple[int, int], colour: str, number: str) -> None:
    """Draws a rectangle in the colour of a phrase's boxes, with the phrase's number."""
    x, y = at
    canvas.rectangle((x, y, x + _key_width(number) - 1, y + 15), fill=colour)
    lettering(SMALL_TEXT).draw(canvas, (x + 4, y), number, "white")


def _draw_texts(canvas: ImageDraw.ImageDraw, at: tuple[int, int], lines: Sequence[str], size: int, fill: str) -> int:
    """Draws lines below each other, and returns the vertical position of the next line."""
    x, y = at
    for line in lines:
        lettering(size).draw(canvas, (x, y), line, fill)
        y += lettering(size).line_height
    return y


def _mark(canvas: ImageDraw.ImageDraw, at: tuple[int, int], *, right: bool) -> None:
    """Draws a tick or a cross, 12 pixels wide."""
    x, y = at
    if right:
        canvas.line([(x, y + 7), (x + 4, y + 11), (x + 12, y + 1)], fill=RIGHT, width=3, joint="curve")
    else:
        canvas.line([(x + 1, y + 1), (x + 11, y + 11)], fill=WRONG, width=3)
        canvas.line([(x + 1, y + 11), (x + 11, y + 1)], fill=WRONG, width=3)
