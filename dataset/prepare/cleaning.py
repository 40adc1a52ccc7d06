"""Rules for boxes and texts of official files: what is clamped, what is dropped, and under which reason it is counted."""

from __future__ import annotations

import html
import math
from typing import Any

from dataset.prepare.counts import Counts
from dataset.records.schema import LONGEST_TEXT, Box
from dataset.text.processors import clean_caption

SMALLEST_PX = 1.0
"""Width and height that a box must have inside its image."""

_MOST_WORDS = LONGEST_TEXT
"""No text is cut here: the config that trains on it says how long texts are."""


def placed_box(value: Any, width: int, height: int, counts: Counts, place: str) -> Box | None:
    """The box (x, y, w, h) inside its image of ``width`` x ``height`` pixels; None, and counted, if it is none.

    It is clamped to the image. It is dropped if it has no area, lies outside, or less than a pixel of it is left.
    """
    try:
        x, y, w, h = (float(each) for each in value)
        far_right, far_bottom = float(width), float(height)
    except (TypeError, ValueError, OverflowError):
        counts.leave_out("wrong type", place, f"{str(value)[:80]} is no box")
        return None
    if not all(map(math.isfinite, (x, y, w, h))):
        counts.leave_out("wrong type", place, f"{[x, y, w, h]} is no box")
        return None
    if w <= 0 or h <= 0:
        counts.leave_out("degenerate box", place, f"{[x, y, w, h]} (x, y, width, height) has no area")
        return None
    left, top, right, bottom = max(x, 0.0), max(y, 0.0), min(x + w, far_right), min(y + h, far_bottom)
    if right <= left or bottom <= top:
        counts.leave_out("box outside image", place, f"{[x, y, w, h]} lies outside the {width} x {height} image")
        return None
    if right - left < SMALLEST_PX or bottom - top < SMALLEST_PX:
        counts.leave_out(
            "degenerate box", place, f"less than a pixel of {[x, y, w, h]} is in the {width} x {height} image"
        )
        return None
    if (left, top, right, bottom) != (x, y, x + w, y + h):
        counts.mend("box clamped", place, f"{[x, y, w, h]} leaves the {width} x {height} image")
    return tidy(left), tidy(top), tidy(right - left), tidy(bottom - top)


def cleaned_text(value: Any, counts: Counts, place: str) -> str | None:
    """The text with its HTML entities resolved (``&gt;`` is ``>``) and then cleaned as published
    (:func:`~dataset.text.processors.clean_caption`). Returns None, and counts the reason, if nothing is left."""
    if not isinstance(value, str):
        counts.leave_out("wrong type", place, f"{str(value)[:80]!r} is no text")
        return None
    if len(value) > LONGEST_TEXT:
        counts.leave_out("bad text", place, f"{len(value):,} characters")
        return None
    if not value.isascii():
        value = value.encode("utf-8", "replace").decode("utf-8")  # half of a surrogate pair, which UTF-8 cannot spell
    try:
        return clean_caption(" ".join(html.unescape(value).split()), _MOST_WORDS)
    except ValueError:
        counts.leave_out("empty text", place, repr(value[:80]))
        return None


def cleaned_texts(values: Any, counts: Counts, place: str) -> list[str]:
    """The different texts of a list after the clean-up, in order; those that come again are counted."""
    if not isinstance(values, list):
        counts.leave_out("wrong type", place, f"{str(values)[:80]!r} is no list of texts")
        return []
    texts: dict[str, None] = {}
    for index, value in enumerate(values):
        text = cleaned_text(value, counts, f"{place}[{index}]")
        if text is not None and text in texts:
            counts.leave_out("duplicate text", f"{place}[{index}]", repr(text[:80]))
        elif text is not None:
            texts[text] = None
    return list(texts)


def tidy(pixels: float) -> float | int:
    """Two decimals, as COCO has them; whole numbers without."""
    rounded = round(pixels, 2)
    return int(rounded) if rounded.is_integer() else rounded
