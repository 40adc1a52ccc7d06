"""Draws boxes on an image: the predicted box is solid, and the ground-truth box is dashed in the same colour."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageDraw

from tasks.drawing.fonts import lettering

Box = tuple[float, float, float, float]
"""x, y, width, height, relative to the image."""

BOX_LEGEND = "solid: predicted · dashed: true, in the same colour · tick: IoU >= 0.5 · cross: less"
"""Legend for the boxes on a sheet."""

TAG_TEXT, TAG_HEIGHT = 11, 14
"""Font size and height of the number next to a box. Above the predicted box, the number is white on the phrase's colour; below
the ground-truth box, the colours are inverted."""

_FIRST = ("#e6194b", "#0082c8", "#f58231", "#911eb4", "#008080", "#aa6e28", "#e000c0", "#3a9b00")
"""Colours that are easy to distinguish on most images."""


@dataclass(frozen=True)
class PairOfBoxes:
    """The predicted and the ground-truth box of a phrase. Either may be None.

    Attributes:
        predicted: the predicted box.
        true: the ground-truth box.
        colour: colour of the phrase.
        number: number of the phrase in the panel; "" if there is only one phrase.
    """

    predicted: Box | None
    true: Box | None
    colour: str
    number: str = ""


def pair_of_boxes(
    prediction: Mapping[str, Any], size: tuple[int, int] | None, colour: str, number: str = ""
) -> PairOfBoxes:
    """Converts the boxes of a prediction, which are in pixels of an image of ``size`` (width, height), to relative boxes."""
    assert size is not None, "a video has no boxes"
    width, height = size

    def relative(key: str) -> Box:
        x, y, w, h = prediction[key]
        return x / width, y / height, w / width, h / height

    return PairOfBoxes(relative("predicted"), relative("true"), colour, number)


def colours(count: int) -> list[str]:
    """Returns ``count`` different colours."""
    more = [_hue(index * 0.618 % 1, 0.9 if index % 2 else 0.65) for index in range(count - len(_FIRST))]
    return [*_FIRST[:count], *more]


def draw_boxes(image: Image.Image, pairs: tuple[PairOfBoxes, ...]) -> None:
    """Draws the boxes on the image."""
    canvas = ImageDraw.Draw(image)
    thick = 4 if min(image.size) >= 200 else 2
    for pair in pairs:
        if pair.predicted is not None:
            for inset in range(thick):
                canvas.rectangle(_shrunk(_pixels(pair.predicted, image.size), inset), outline=pair.colour)
    for pair in pairs:
        if pair.true is not None:
            _dashed(canvas, _shrunk(_pixels(pair.true, image.size), thick // 4), pair.colour, thick // 2)
    taken: list[tuple[int, int, int, int]] = []
    for pair in pairs:
        if not pair.number:
            continue
        if pair.predicted is not None:
            predicted = _pixels(pair.predicted, image.size)
            at = _tag_position(predicted[0], predicted[1] - TAG_HEIGHT, pair.number, image.size, taken)
            _draw_tag(canvas, at, pair.number, fill=pair.colour, ink="white")
        if pair.true is not None:
            true = _pixels(pair.true, image.size)
            at = _tag_position(true[0], true[3] + 1, pair.number, image.size, taken)
            _draw_tag(canvas, at, pair.number, fill="white", ink=pair.colour)


def _pixels(box: Box, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Returns the first and last column and row of a box, clipped to the image."""
    (x, y, w, h), (width, height) = box, size
    left, top = (min(max(0, round(low * side)), side - 1) for low, side in ((x, width), (y, height)))
    right, bottom = (round(high * side) - 1 for high, side in ((x + w, width), (y + h, height)))
    return left, top, max(left, min(right, width - 1)), max(top, min(bottom, height - 1))


def _shrunk(corners: tuple[int, int, int, int], inset: int) -> tuple[int, int, int, int]:
    left, top, right, bottom = corners
    inset = min(inset, (right - left) // 2, (bottom - top) // 2)
    return left + inset, top + inset, right - inset, bottom - inset


def _dashed(canvas: ImageDraw.ImageDraw, corners: tuple[int, int, int, int], colour: str, thick: int) -> None:
    """Draws a rectangle whose dashes alternate between ``colour`` and white, so that it is visible on dark and bright areas, and
    on top of a line of the same colour."""
    left, top, right, bottom = corners
    dash = 4 + 2 * thick
    for inset in range(thick):
        for start in range(left, right + 1, dash):
            fill = colour if (start - left) // dash % 2 == 0 else "white"
            end = min(start + dash - 1, right)
            canvas.line([(start, top + inset), (end, top + inset)], fill=fill)
            canvas.line([(start, bottom - inset), (end, bottom - inset)], fill=fill)
        for start in range(top, bottom + 1, dash):
            fill = colour if (start - top) // dash % 2 == 0 else "white"
            end = min(start + dash - 1, bottom)
            canvas.line([(left + inset, start), (left + inset, end)], fill=fill)
            canvas.line([(right - inset, start), (right - inset, end)], fill=fill)


def _tag_position(
    left: int, top: int, number: str, size: tuple[int, int], taken: list[tuple[int, int, int, int]]
) -> tuple[int, int, int, int]:
    """Returns the position of a number inside the image. If there is room, it is moved to the right of numbers that it would
    cover."""
    wide = round(lettering(TAG_TEXT).width(number)) + 6
    left, top = max(0, min(left, size[0] - wide)), max(0, min(top, size[1] - TAG_HEIGHT))

    def overlapping_rights() -> list[int]:
        return [r for x, y, r, b in taken if x <= left + wide - 1 and left <= r and y < top + TAG_HEIGHT and top <= b]

    while (rights := overlapping_rights()) and max(rights) + wide < size[0]:
        left = max(rights) + 1
    taken.append((left, top, left + wide - 1, top + TAG_HEIGHT - 1))
    return taken[-1]


def _draw_tag(canvas: ImageDraw.ImageDraw, at: tuple[int, int, int, int], number: str, *, fill: str, ink: str) -> None:
    canvas.rectangle(at, fill=fill)
    lettering(TAG_TEXT).draw(canvas, (at[0] + 3, at[1]), number, ink)


def _hue(hue: float, value: float) -> str:
    red, green, blue = (round(255 * part) for part in colorsys.hsv_to_rgb(hue, 0.85, value))
    return f"#{red:02x}{green:02x}{blue:02x}"
