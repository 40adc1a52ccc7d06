"""The report of ``run.py doctor``: a line for each check as it finishes, then the numbered findings."""

from __future__ import annotations

import contextlib
import textwrap
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from tasks.prepared import Check, Findings, NotCheckedError
from utils.errors import UserError
from utils.findings import Finding, finding_of
from utils.printing import counted

WIDTH = 120


class Report(Findings):
    """Writes the lines of a report and keeps its findings. Findings that differ only in their location are merged.

    Args:
        write: writes a text; called immediately when a line is complete.
    """

    def __init__(self, write: Callable[[str], object]):
        super().__init__()
        self._write, self._section = write, ""
        self._locations: list[list[str]] = []
        self.not_checked = 0

    def run(self, check: Check, subject: Any) -> None:
        """Makes a check. An error becomes a finding or a line, and the report continues with the next check."""
        if check.section != self._section:
            self._section = check.section
            self._write(f"\n{check.section}\n")
        with self.check(check.name):
            check.run(subject, self)

    def ok(self, check: str, text: str) -> None:
        """Reports a check that found nothing wrong."""
        self._line("ok", check, text)

    def skip(self, check: str, why: str) -> None:
        """Reports a check that could not run."""
        self.not_checked += 1
        self._line("-", check, f"not checked: {why}")

    def add(self, check: str, findings: Sequence[Finding], otherwise: str | None = None) -> bool:
        """Reports the findings of a check or, without findings, the line ``otherwise``; returns whether there are findings."""
        for finding in findings:
            number, known = self._number(finding)
            fact = "the same" if known else finding.fact
            self._line(finding.level, check, f"[{number}] {finding.location}: {fact}")
        if not findings and otherwise is not None:
            self.ok(check, otherwise)
        return bool(findings)

    @contextlib.contextmanager
    def check(self, name: str) -> Iterator[None]:
        """Context manager of a check, or of a part of one, in which an error becomes a finding or a line."""
        try:
            yield
        except NotCheckedError as error:
            self.skip(name, str(error))
        except UserError as error:
            self.add(name, [finding_of(error)])
        except Exception as error:  # raised by a task's own code; the other checks do not depend on it
            last = traceback.extract_tb(error.__traceback__)[-1]
            fact = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            remedy = "fix this code, or report the error if it is not your code"
            self.add(name, [Finding("refused", f"{last.filename}:{last.lineno}", fact, remedy)])

    def end(self, seconds: float) -> int:
        """Writes the numbered findings and their counts by level; returns the exit status."""
        if self.findings:
            self._write("\nfindings\n")
        for number, finding in enumerate(self.findings, start=1):
            self._write(f"{number:3}. {finding.level}: {', '.join(self._locations[number - 1])}\n")
            remedy = [("remedy", finding.remedy)] if finding.remedy else []
            for name, text in (("fact", finding.fact), *remedy):
                wrapped = textwrap.fill(text, WIDTH - 13, break_long_words=False, break_on_hyphens=False)
                self._write(f"     {name + ':':7} {wrapped.replace(chr(10), chr(10) + ' ' * 13)}\n")
        levels = [finding.level for finding in self.findings]
        refused, warnings = levels.count("refused"), levels.count("warning")
        counts = f"{refused} refused, {counted(warnings, 'warning', 'warnings')}, {self.not_checked} not checked"
        self._write(f"\n{counts} ({seconds:.0f} s)\n")
        return 1 if refused else 0

    def _number(self, finding: Finding) -> tuple[int, bool]:
        """Returns the number of a finding, and whether an equal finding was already reported, perhaps for another location."""
        for number, (other, locations) in enumerate(zip(self.findings, self._locations, strict=True), start=1):
            if (other.level, other.fact, other.remedy) == (finding.level, finding.fact, finding.remedy):
                locations += [] if finding.location in locations else [finding.location]
                return number, True
        self.findings.append(finding)
        self._locations.append([finding.location])
        return len(self.findings), False

    def _line(self, level: str, check: str, text: str) -> None:
        head = f"  {level:8} {check:16} "
        lines = textwrap.wrap(text, WIDTH - len(head), break_long_words=False, break_on_hyphens=False) or [""]
        self._write(head + ("\n" + " " * len(head)).join(lines) + "\n")
