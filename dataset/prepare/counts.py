"""Counts for a conversion: what was read, written, fixed and skipped, with the first examples of each reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from batches.base import BrokenRecord
from dataset.broken import printable

MAX_EXAMPLES = 3
"""Maximum number of examples that are kept for each reason."""

_COUNTERS = ("read", "written", "fixed", "skipped")
_EARLIER_NAMES = {"written": "made", "fixed": "mended", "skipped": "left_out"}
"""Names of the counters in files of earlier versions."""


@dataclass
class Counts:
    """Counts for all files, one file, or part of a file.

    Attributes:
        read: number of entries read, by unit ("images", "regions").
        written: number of entries written, by unit.
        fixed: number of changed values, by reason.
        skipped: number of skipped entries, by reason.
        examples: the first entries that were fixed or skipped for each reason, each in the form of a broken record.
    """

    read: Counter[str] = field(default_factory=Counter)
    written: Counter[str] = field(default_factory=Counter)
    fixed: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[BrokenRecord]] = field(default_factory=dict)

    def skip(self, reason: str, location: str, detail: str = "") -> None:
        """Counts a skipped image, text or box."""
        self.skipped[reason] += 1
        self._add_example(reason, location, detail)

    def fix(self, reason: str, location: str, detail: str = "") -> None:
        """Counts a changed value."""
        self.fixed[reason] += 1
        self._add_example(reason, location, detail)

    def skip_broken(self, broken: BrokenRecord) -> None:
        """Counts a broken record."""
        self.skip(broken.reason, broken.place, broken.detail)

    def add(self, other: Counts) -> None:
        """Adds other counts to these."""
        for name in _COUNTERS:
            getattr(self, name).update(getattr(other, name))
        for reason, examples in other.examples.items():
            kept = self.examples.setdefault(reason, [])
            kept += examples[: MAX_EXAMPLES - len(kept)]

    def clear(self) -> None:
        """Resets all counts."""
        for name in (*_COUNTERS, "examples"):
            getattr(self, name).clear()

    def lines(self) -> Iterator[str]:
        """Yields a line for each reason, such as "skipped: 3 empty text, first train.tsv:7"."""
        for verb, counter in (("skipped", self.skipped), ("fixed", self.fixed)):
            for reason, number in counter.most_common():
                if number:
                    first = f", first {self.first(reason)}" if reason in self.examples else ""
                    yield f"{verb}: {number:,} {reason}{first}"

    def first(self, reason: str) -> str:
        """Returns the first example of a reason as a text."""
        example = self.examples[reason][0]
        return f"{example.place}: {example.detail}" if example.detail else example.place

    def to_values(self) -> dict[str, Any]:
        """Returns the counts as JSON values."""
        examples = [each.to_values() for examples in self.examples.values() for each in examples]
        return {**{name: dict(getattr(self, name)) for name in _COUNTERS}, "examples": examples}

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> Counts:
        """Returns the counts that :meth:`to_values` of this version or an earlier one converted."""
        counts = cls()
        for name in _COUNTERS:
            getattr(counts, name).update(values.get(name) or values.get(_EARLIER_NAMES.get(name, name), {}))
        for each in values.get("examples", ()):
            counts.examples.setdefault(each["reason"], []).append(BrokenRecord(**each))
        return counts

    @classmethod
    def of_files(cls, counts: Iterable[Mapping[str, Any]]) -> Counts:
        """Returns the total of the counts of several files, given as JSON values."""
        total = cls()
        for values in counts:
            total.add(cls.from_values(values))
        return total

    def _add_example(self, reason: str, location: str, detail: str) -> None:
        examples = self.examples.setdefault(reason, [])
        if len(examples) < MAX_EXAMPLES:
            examples.append(BrokenRecord(printable(location), reason, printable(detail)))
