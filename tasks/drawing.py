"""Drawing of predicted boxes."""

from __future__ import annotations

import colorsys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from metrics.grounding import iou
from utils.files import replacing

BoxCxcywh = tuple[float, ...]
SIDE, MARGIN, LINE, COLUMNS = 280, 14, 19, 4


@dataclass(frozen=True)
class Prediction:
    """A phrase with its true and predicted box, (cx, cy, w, h) relative to the image."""

    phrase: str
    true: BoxCxcywh
    predicted: BoxCxcywh


@dataclass(frozen=True)
class Panel:
    """An image, (H, W, 3) uint8, and its predictions."""

    pixels: np.ndarray
    predictions: list[Prediction]


def draw_predictions(panels: list[Panel], path: Path) -> None:
    """Write a PNG of all panels: true boxes thin and white, predicted boxes thick and coloured, phrases with their IoU."""
    most = max(len(panel.predictions) for panel in panels)
    width, height = SIDE + 2 * MARGIN, SIDE + 2 * MARGIN + most * LINE
    rows = -(-len(panels) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * width, rows * height + 2 * LINE), "white")
    ImageDraw.Draw(sheet).text(
        (MARGIN, LINE // 2), "white: true box · colour: predicted box · number: IoU", fill="black", font=_font(15)
    )
    for index, panel in enumerate(panels):
        corner = (index % COLUMNS * width + MARGIN, index // COLUMNS * height + 2 * LINE)
        _draw_panel(sheet, corner, panel)
    with replacing(path) as temporary:
        sheet.save(temporary, format="PNG")


def _draw_panel(sheet: Image.Image, corner: tuple[int, int], panel: Panel) -> None:
    image = Image.fromarray(panel.pixels).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    canvas = ImageDraw.Draw(image)
    count = len(panel.predictions)
    colours = [_colour(index / max(1, count)) for index in range(count)]
    for prediction in panel.predictions:
        canvas.rectangle(_pixels(prediction.true), outline="black", width=3)
        canvas.rectangle(_pixels(prediction.true), outline="white", width=1)
    for prediction, colour in zip(panel.predictions, colours, strict=True):
        canvas.rectangle(_pixels(prediction.predicted), outline=colour, width=3)
    sheet.paste(image, corner)
    text = ImageDraw.Draw(sheet)
    for line, (prediction, colour) in enumerate(zip(panel.predictions, colours, strict=True)):
        overlap = iou(np.array([prediction.true]), np.array([prediction.predicted]))[0]
        y = corner[1] + SIDE + 5 + line * LINE
        text.rectangle((corner[0], y + 3, corner[0] + 10, y + 13), fill=colour)
        text.text((corner[0] + 16, y), _clip(f"{overlap:.2f} {prediction.phrase}", 46), fill="black", font=_font(13))


def _pixels(box: BoxCxcywh) -> tuple[float, float, float, float]:
    cx, cy, w, h = (value * SIDE for value in box)
    left, top = max(0.0, cx - w / 2), max(0.0, cy - h / 2)
    return left, top, max(left, min(SIDE - 1.0, cx + w / 2)), max(top, min(SIDE - 1.0, cy + h / 2))


def _colour(hue: float) -> tuple[int, int, int]:
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.85, 0.9)
    return round(red * 255), round(green * 255), round(blue * 255)


def _clip(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
