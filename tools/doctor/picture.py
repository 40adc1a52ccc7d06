"""Draws panels of images, boxes and texts."""

from __future__ import annotations

import colorsys
import re
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from tools.doctor.panels import Line, Panel
from utils.files import replacing

SIDE, MARGIN, LINE, FONT, WIDTH = 224, 12, 17, 13, 1464
MARKED = (200, 30, 30)
LEGEND = "red: masked, or to predict · a coloured square: the box of that colour"


def draw(panels: list[Panel], path: Path) -> None:
    """Write a PNG of the panels."""
    most = max([len(panel.images) for panel in panels] or [1])
    side = min(SIDE, (WIDTH - 2 * MARGIN) // max(1, most))
    width = max(1, most) * side + 2 * MARGIN if most > 1 else side + 2 * MARGIN + SIDE // 2
    columns = max(1, WIDTH // width)
    made = [_panel(panel, width, side) for panel in panels]
    rows = [made[start : start + columns] for start in range(0, len(made), columns)]
    heights = [max(image.height for image in row) for row in rows]
    sheet = Image.new("RGB", (columns * width, sum(heights) + 2 * LINE), "white")
    ImageDraw.Draw(sheet).text((MARGIN, LINE // 2), LEGEND, fill="black", font=_font())
    top = 2 * LINE
    for row, height in zip(rows, heights, strict=True):
        for column, image in enumerate(row):
            sheet.paste(image, (column * width, top))
        top += height
    with replacing(path) as temporary:
        sheet.save(temporary, format="PNG")


def _panel(panel: Panel, width: int, side: int) -> Image.Image:
    """One panel: title, images, and texts below each other."""
    texts = [_wrapped(line, width - 2 * MARGIN - 16) for line in panel.lines]
    images = side if panel.images else 0
    height = LINE + images + 6 + sum(len(rows) for rows in texts) * LINE + MARGIN
    sheet = Image.new("RGB", (width, height), "white")
    canvas = ImageDraw.Draw(sheet)
    canvas.text((MARGIN, 0), panel.title, fill="gray", font=_font())
    for place, pixels in enumerate(panel.images):
        image = Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC)
        if place == 0:
            _draw_boxes(ImageDraw.Draw(image), panel, side)
        sheet.paste(image, (MARGIN + place * side, LINE))
    top = LINE + images + 6
    for line, rows in zip(panel.lines, texts, strict=True):
        if line.box is not None:
            canvas.rectangle((MARGIN, top + 3, MARGIN + 10, top + 13), fill=_colour(line.box, len(panel.boxes)))
        for row in rows:
            left = float(MARGIN + 16)
            for word, marked in row:
                canvas.text((left, top), word, fill=MARKED if marked else "black", font=_font())
                left += _font().getlength(word)
            top += LINE
    return sheet


def _draw_boxes(canvas: ImageDraw.ImageDraw, panel: Panel, side: int) -> None:
    for number, (cx, cy, w, h) in enumerate(panel.boxes):
        corners = [value * side for value in (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2)]
        left, top, right, bottom = (min(side - 1.0, max(0.0, value)) for value in corners)
        canvas.rectangle((left, top, max(left, right), max(top, bottom)), outline="black", width=4)
        canvas.rectangle(
            (left, top, max(left, right), max(top, bottom)), outline=_colour(number, len(panel.boxes)), width=2
        )


def _wrapped(line: Line, width: int) -> list[list[tuple[str, bool]]]:
    """The words of a line in rows of at most ``width`` pixels, each with whether it is marked."""
    words = [(word, segment.marked) for segment in line.segments for word in re.findall(r"\s*\S+\s*|\s+", segment.text)]
    rows: list[list[tuple[str, bool]]] = [[]]
    used = 0.0
    for word, marked in words:
        length = _font().getlength(word)
        if rows[-1] and used + length > width:
            rows.append([])
            word, used = word.lstrip(), 0.0
            length = _font().getlength(word)
        rows[-1].append((word, marked))
        used += length
    return rows


def _colour(number: int, count: int) -> tuple[int, int, int]:
    red, green, blue = colorsys.hsv_to_rgb(number / max(1, count), 0.9, 0.95)
    return round(red * 255), round(green * 255), round(blue * 255)


_FONTS: dict[int, ImageFont.FreeTypeFont | ImageFont.ImageFont] = {}


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    if FONT not in _FONTS:
        _FONTS[FONT] = ImageFont.load_default(FONT)
    return _FONTS[FONT]
