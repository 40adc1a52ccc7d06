"""Filters image-text pairs by the metadata in their list, such as LAION's similarity scores and safety tags."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from utils.flags import number_within, read_by, whole_number
from utils.numerals import plain_number

Safety = Literal["none", "NSFW", "UNSURE"]


@dataclass(frozen=True, kw_only=True)
class Filters:
    """Filters that exclude image-text pairs of LAION. The paper says that LAION was filtered (section 4.1), but not how, so none
    of the default values come from the paper.

    Args:
        min_side: minimum length in pixels of an image's shorter side, according to the list; 0 turns the filter off.
        min_similarity: minimum CLIP similarity of image and text, according to the list; -1 turns the filter off.
        safety: NSFW excludes images with this tag, UNSURE excludes images with either tag, and none excludes no images.
        max_unsafe: maximum probability that an image is unsafe; 1 turns the filter off.
        max_watermark: maximum probability of a watermark; 1 turns the filter off.
    """

    min_side: Annotated[int, read_by(whole_number(0, 100_000))] = 0
    min_similarity: Annotated[float, read_by(number_within(-1, 1))] = -1.0
    safety: Safety = "NSFW"
    max_unsafe: Annotated[float, read_by(number_within(0, 1))] = 1.0
    max_watermark: Annotated[float, read_by(number_within(0, 1))] = 1.0

    @property
    def needed(self) -> list[str]:
        """The columns that the active filters need."""
        active = {
            "width": self.min_side > 0,
            "height": self.min_side > 0,
            "similarity": self.min_similarity > -1,
            "safety": self.safety != "none",
            "unsafe": self.max_unsafe < 1,
            "watermark": self.max_watermark < 1,
        }
        return [name for name, is_active in active.items() if is_active]

    def reason(self, row: Mapping[str, Any]) -> str | None:
        """Returns the reason for excluding a pair, given its columns, or None if the pair is used. A missing value never passes a
        filter."""
        if self.min_side and min(number_or(row.get("width")), number_or(row.get("height"))) < self.min_side:
            return f"side below {self.min_side}"
        if self.min_similarity > -1 and not number_or(row.get("similarity"), -2) >= self.min_similarity:
            return f"similarity below {self.min_similarity}"
        tag = str(row.get("safety") or "").upper()
        if self.safety != "none" and (tag in ("NSFW", "") or tag == self.safety):
            return f"tagged {tag}" if tag else "without a tag of safety"
        for name, maximum in (("unsafe", self.max_unsafe), ("watermark", self.max_watermark)):
            if maximum < 1 and not number_or(row.get(name), 2) <= maximum:
                return f"{name} above {maximum}"
        return None


def number_or(value: Any, default: float = 0) -> float:
    """Converts a value to a number. Returns ``default`` if the value is not a number."""
    try:
        number = plain_number(value)  # some lists have decimals, or numbers as texts
    except (TypeError, ValueError, OverflowError):
        return default
    return number if number == number else default
