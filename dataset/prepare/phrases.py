"""Collects the phrases of an image, which may have several boxes or none."""

from __future__ import annotations

from typing import Any

from dataset.prepare.counts import Counts
from dataset.records.schema import Box

SAME_BOX = 0.9
"""Minimum overlap (intersection over union) at which two boxes of a phrase count as one box."""


class Phrases:
    """Collects the boxes of the phrases of an image. Each phrase becomes one element of the record.

    Args:
        counts: receives the boxes that are dropped because they repeat an earlier box of their phrase.
    """

    def __init__(self, counts: Counts):
        self._counts = counts
        self._elements: dict[str | tuple[str, ...], dict[str, Any]] = {}
        self.boxes = 0
        """Number of boxes."""

    def __len__(self) -> int:
        return len(self._elements)

    def add(self, texts: list[str], box: Box, grain: str, location: str) -> dict[str, Any]:
        """Adds a box of a phrase and returns the element of the phrase.

        Args:
            texts: the phrase, or several alternative phrases.
            box: x, y, width, height.
            grain: "object" or "region". If a phrase is added with both, the first is kept.
            location: location of the box, to name in error messages.
        """
        element = self._element(texts, grain)
        boxes: list[Box] = element["bb"]
        if boxes and any(overlap(box, other) >= SAME_BOX for other in boxes):
            self._counts.skip("duplicate box", location, f"{list(box)} of {texts[0][:80]!r}")
        else:
            boxes.append(box)
            self.boxes += 1
        return element

    def add_absent(self, texts: list[str], grain: str) -> None:
        """Adds a phrase that the image does not show. If the phrase has boxes, they are kept."""
        self._element(texts, grain)

    def elements(self) -> list[dict[str, Any]]:
        """Returns the elements in the order of their first mention."""
        return [
            {**each, "bb": each["bb"][0] if len(each["bb"]) == 1 else each["bb"]} for each in self._elements.values()
        ]

    def _element(self, texts: list[str], grain: str) -> dict[str, Any]:
        key = texts[0] if len(texts) == 1 else tuple(texts)
        element = self._elements.get(key)
        if element is None:
            element = {"caption": texts[0] if len(texts) == 1 else texts, "bb": [], "grain": grain}
            self._elements[key] = element
        return element


def overlap(one: Box, other: Box) -> float:
    """Returns the intersection over union of two boxes (x, y, width, height) that have an area."""
    width = min(one[0] + one[2], other[0] + other[2]) - max(one[0], other[0])
    height = min(one[1] + one[3], other[1] + other[3]) - max(one[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    shared = width * height
    return shared / (one[2] * one[3] + other[2] * other[3] - shared)
