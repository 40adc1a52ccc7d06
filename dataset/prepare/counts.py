"""Counts of a conversion: read, made, mended and left out, by reason, with the first places of each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dataset.records.broken import printable

PLACES = 3
"""Places that are kept of each reason."""


@dataclass
class Counts:
    """Counts of one file, of a part of it, or of all.

    ``read`` and ``made`` by unit ("images", "regions"); ``mended`` and ``left_out`` by reason. ``places``: the first ones of each
    reason, with what is wrong there.
    """

    read: Counter[str] = field(default_factory=Counter)
    made: Counter[str] = field(default_factory=Counter)
    mended: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    places: dict[str, list[str]] = field(default_factory=dict)

    def leave_out(self, reason: str, place: str, detail: str = "") -> None:
        """Count an image, a text or a box that is left out."""
        self.left_out[reason] += 1
        self._note(reason, place, detail)

    def mend(self, reason: str, place: str, detail: str = "") -> None:
        """Count a value that is changed."""
        self.mended[reason] += 1
        self._note(reason, place, detail)

    def add(self, other: Counts) -> None:
        """Add what another part counted."""
        for mine, theirs in zip(self._counters(), other._counters(), strict=True):
            mine.update(theirs)
        for reason, places in other.places.items():
            kept = self.places.setdefault(reason, [])
            kept += places[: PLACES - len(kept)]

    def clear(self) -> None:
        """Starts counting again."""
        for counter in self._counters():
            counter.clear()
        self.places.clear()

    def to_values(self) -> dict[str, Any]:
        """The counts as JSON values."""
        names = ("read", "made", "mended", "left_out")
        counts = {name: dict(counter) for name, counter in zip(names, self._counters(), strict=True)}
        return {**counts, "places": self.places}

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> Counts:
        """The counts of :meth:`to_values`."""
        read, made, mended, left_out = (Counter(values[name]) for name in ("read", "made", "mended", "left_out"))
        return cls(read, made, mended, left_out, dict(values["places"]))

    def _counters(self) -> tuple[Counter[str], ...]:
        return self.read, self.made, self.mended, self.left_out

    def _note(self, reason: str, place: str, detail: str) -> None:
        places = self.places.setdefault(reason, [])
        if len(places) < PLACES:
            places.append(printable(f"{place}: {detail}" if detail else place))
