"""Cleans boxes and texts from official files. Boxes and texts are corrected or dropped, and the reasons are counted."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping
from typing import Any

from dataset.prepare.counts import Counts
from dataset.records.schema import LONGEST_TEXT, Box
from dataset.text.processors import clean_caption
from utils.numerals import plain_number

MIN_SIDE_PX = 1.0
"""Minimum width and height of the part of a box that is inside its image."""

RELATIVE_SLACK = 0.1
"""How far a relative coordinate may lie outside the range 0 to 1, because predicted boxes may extend slightly beyond the
image."""

_MAX_WORDS = LONGEST_TEXT
"""Texts are not truncated here, because the training config sets their maximum length."""


def annotated_size(values: Mapping[str, Any]) -> tuple[int, int]:
    """Returns ``width`` and ``height`` in an official file. Raises KeyError, TypeError, ValueError or OverflowError if they are
    missing or not numbers."""
    return int(plain_number(values["width"])), int(plain_number(values["height"]))


def clamped_box(value: Any, width: float, height: float, counts: Counts, location: str) -> Box | None:
    """Clamps a box (x, y, w, h) to its image of ``width`` x ``height`` pixels.

    Returns None, after counting the reason, if ``value`` is not a box, has no area, lies outside the image, or is less than a
    pixel wide or high after clamping.
    """
    try:
        x, y, w, h = (plain_number(each) for each in value)
        far_right, far_bottom = plain_number(width), plain_number(height)
    except (TypeError, ValueError, OverflowError):
        counts.skip("wrong type", location, f"{str(value)[:80]} is not a box")
        return None
    if not all(map(math.isfinite, (x, y, w, h))):
        counts.skip("wrong type", location, f"{[x, y, w, h]} is not a box")
        return None
    if w <= 0 or h <= 0:
        counts.skip("degenerate box", location, f"{[x, y, w, h]} (x, y, width, height) has no area")
        return None
    left, top, right, bottom = max(x, 0.0), max(y, 0.0), min(x + w, far_right), min(y + h, far_bottom)
    if right <= left or bottom <= top:
        counts.skip("box outside image", location, f"{[x, y, w, h]} is outside the {width} x {height} image")
        return None
    if right - left < MIN_SIDE_PX or bottom - top < MIN_SIDE_PX:
        counts.skip(
            "degenerate box", location, f"less than a pixel of {[x, y, w, h]} is in the {width} x {height} image"
        )
        return None
    if (left, top, right, bottom) != (x, y, x + w, y + h):
        counts.fix("box clamped", location, f"{[x, y, w, h]} exceeds the {width} x {height} image")
    return tidy(left), tidy(top), tidy(right - left), tidy(bottom - top)


def corner_box(value: Any, width: float, height: float, counts: Counts, location: str) -> Box | None:
    """Like :func:`clamped_box`, for a box that is given by its corners (x1, y1, x2, y2) in pixels."""
    corners = _corners(value, counts, location)
    if corners is None:
        return None
    x1, y1, x2, y2 = corners
    return clamped_box((x1, y1, x2 - x1, y2 - y1), width, height, counts, location)


def relative_box(value: Any, width: int, height: int, counts: Counts, location: str) -> Box | None:
    """Converts a box that is given by its corners (x1, y1, x2, y2), as fractions of its image's width and height, to a box in
    pixels.

    Returns None, after counting the reason, for the reasons listed in :func:`clamped_box`, or if a coordinate is so far from 0
    and 1 that it cannot be a fraction.
    """
    corners = _corners(value, counts, location)
    if corners is None:
        return None
    x1, y1, x2, y2 = corners
    if 0 <= x1 < x2 <= 1 and 0 <= y1 < y2 <= 1:  # the common case, without the checks of clamped_box
        w, h = (x2 - x1) * width, (y2 - y1) * height
        if w >= MIN_SIDE_PX and h >= MIN_SIDE_PX:
            return tidy(x1 * width), tidy(y1 * height), tidy(w), tidy(h)
    if min(x1, y1, x2, y2) < -RELATIVE_SLACK or max(x1, y1, x2, y2) > 1 + RELATIVE_SLACK:
        counts.skip("box outside image", location, f"{[x1, y1, x2, y2]} are not fractions of the image's sides")
        return None
    box = x1 * width, y1 * height, (x2 - x1) * width, (y2 - y1) * height
    return clamped_box(box, width, height, counts, location)


def _corners(value: Any, counts: Counts, location: str) -> Box | None:
    try:
        if isinstance(value, list | tuple):
            x1, y1, x2, y2 = (plain_number(each) for each in value)
            return x1, y1, x2, y2
    except (TypeError, ValueError, OverflowError):
        pass
    counts.skip("wrong type", location, f"{str(value)[:80]} is not a box")
    return None


def cleaned_text(value: Any, counts: Counts, location: str) -> str | None:
    """Resolves the HTML entities in a text (``&gt;`` becomes ``>``) and cleans it as the authors' code does
    (:func:`~dataset.text.processors.clean_caption`). Returns None, after counting the reason, if the text cannot be used."""
    text = _plain_text(value, counts, location)
    try:
        return None if text is None else clean_caption(text, _MAX_WORDS)
    except ValueError:
        counts.skip("empty text", location, repr(value[:80]))
        return None


def cleaned_texts(values: Any, counts: Counts, location: str) -> list[str]:
    """Cleans the texts in a list, and returns the distinct texts in order. Duplicates are counted."""
    if not isinstance(values, list):
        counts.skip("wrong type", location, f"{str(values)[:80]!r} is not a list of texts")
        return []
    texts: dict[str, None] = {}
    for index, value in enumerate(values):
        text = cleaned_text(value, counts, f"{location}[{index}]")
        if text is not None and text in texts:
            counts.skip("duplicate text", f"{location}[{index}]", repr(text[:80]))
        elif text is not None:
            texts[text] = None
    return list(texts)


def long_text(value: Any, counts: Counts, location: str) -> str | None:
    """Resolves the HTML entities in a long text and joins its lines. Returns None, after counting the reason, if the text cannot
    be used.

    Case and punctuation are kept, because they mark the ends of sentences. Training cleans the texts again when it reads them.
    """
    text = _plain_text(value, counts, location)
    if text is not None and not any(map(str.isalnum, text)):
        counts.skip("empty text", location, repr(value[:80]))
        return None
    return text


def _plain_text(value: Any, counts: Counts, location: str) -> str | None:
    """Returns a text on one line, without HTML entities; or None, after counting the reason, if the value is not a text or is
    too long."""
    if not isinstance(value, str):
        counts.skip("wrong type", location, f"{str(value)[:80]!r} is not a text")
        return None
    if len(value) > LONGEST_TEXT:
        counts.skip("bad text", location, f"{len(value):,} characters")
        return None
    if not value.isascii():
        value = value.encode("utf-8", "replace").decode("utf-8")  # UTF-8 cannot encode half of a surrogate pair
    return " ".join(html.unescape(value).split())


def tidy(pixels: float) -> float | int:
    """Rounds to two decimals, as in COCO's files; an integral value becomes an int."""
    rounded = round(pixels, 2)
    return int(rounded) if rounded.is_integer() else rounded
