"""Counts for a conversion: what was read, written, fixed and skipped, with the first locations for each reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dataset.records.broken import printable

MAX_LOCATIONS = 3
"""Maximum number of locations that are kept for each reason."""

_KEYS = ("read", "made", "mended", "left_out")
"""Keys of the counters in a manifest. They differ from the attributes so that manifests of earlier versions remain readable."""


@dataclass
class Counts:
    """Counts for all files, one file, or part of a file.

    Attributes:
        read: number of entries read, by unit ("images", "regions").
        written: number of entries written, by unit.
        fixed: number of changed values, by reason.
        skipped: number of skipped entries, by reason.
        locations: the first locations for each reason, with a description of the problem.
    """

    read: Counter[str] = field(default_factory=Counter)
    written: Counter[str] = field(default_factory=Counter)
    fixed: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    locations: dict[str, list[str]] = field(default_factory=dict)

    def skip(self, reason: str, location: str, detail: str = "") -> None:
        """Counts a skipped image, text or box."""
        self.skipped[reason] += 1
        self._note(reason, location, detail)

    def fix(self, reason: str, location: str, detail: str = "") -> None:
        """Counts a changed value."""
        self.fixed[reason] += 1
        self._note(reason, location, detail)

    def add(self, other: Counts) -> None:
        """Adds other counts to these."""
        for counter, other_counter in zip(self._counters(), other._counters(), strict=True):
            counter.update(other_counter)
        for reason, locations in other.locations.items():
            kept = self.locations.setdefault(reason, [])
            kept += locations[: MAX_LOCATIONS - len(kept)]

    def clear(self) -> None:
        """Resets all counts."""
        for counter in self._counters():
            counter.clear()
        self.locations.clear()

    def to_values(self) -> dict[str, Any]:
        """Returns the counts as JSON values."""
        counts = {key: dict(counter) for key, counter in zip(_KEYS, self._counters(), strict=True)}
        return {**counts, "places": self.locations}

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> Counts:
        """Returns the counts that :meth:`to_values` converted."""
        read, written, fixed, skipped = (Counter(values[key]) for key in _KEYS)
        return cls(read, written, fixed, skipped, dict(values["places"]))

    def _counters(self) -> tuple[Counter[str], ...]:
        return self.read, self.written, self.fixed, self.skipped

    def _note(self, reason: str, location: str, detail: str) -> None:
        locations = self.locations.setdefault(reason, [])
        if len(locations) < MAX_LOCATIONS:
            locations.append(printable(f"{location}: {detail}" if detail else location))
