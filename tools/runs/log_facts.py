"""Facts that only a run's log contains: when it ran, how often it resumed, what stopped it, and which records were broken."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

LINE = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),\d+ ([A-Z]+) (\S+): (.*)", re.S)
BROKEN = re.compile(
    r"skipped a broken record: (.+?): ([\w /-]+): (.*) \(more of this kind are counted, not logged\)", re.S
)
READ = re.compile(r"(\d+) records read, none broken|(\d+) of (\d+) records \([\d.]+ %\) are broken(.*)", re.S)
KIND = re.compile(r"(\d+) ([\w /-]+) \(first: (.*?)\)(?=, \d+ |; |$)", re.S)
STEPS = re.compile(r"; (\d+) steps are [\d.]+ epochs")
SELECTS = re.compile(
    r"step \d+: validation (.+) (?:-?\d+\.\d+|nan)(?: of the averaged weights)?(?:, the best so far)?$"
)
BEST = re.compile(r"step (\d+): validation .*, the best so far$")
PARAMETERS = re.compile(r"[\d.]+ M parameters")

MOST = 50
"""Maximum number of lines of a kind that are kept."""
NEWEST = 5
"""Number of newest warnings that are kept in addition."""
LONGEST_LINE = 20_000


@dataclass
class BrokenKind:
    """Broken records of one kind. ``count``: None if the run ended before it counted them; ``message``: of the first record."""

    kind: str
    count: int | None
    place: str
    message: str = ""


@dataclass
class LogFacts:
    """``events``: resumptions and stops, with their time. ``read``: the last process with an orderly end reported this about the
    records that it read; ``starts``: number of processes; ``steps``: of the whole run; ``selects``: the metric that selects the
    best weights; ``best``: their step."""

    started: str | None = None
    ended: str | None = None
    events: list[tuple[str, str]] = field(default_factory=list)
    starts: int = 0
    resumed: int = 0
    skipped_steps: int = 0
    warnings: list[tuple[str, str]] = field(default_factory=list)
    warning_count: int = 0
    newest_warnings: deque[tuple[str, str]] = field(default_factory=lambda: deque(maxlen=NEWEST))
    read: str | None = None
    kinds: dict[str, BrokenKind] = field(default_factory=dict)
    steps: int | None = None
    selects: str | None = None
    best: int | None = None
    weights: str | None = None
    parameters: str | None = None
    stop: str | None = None
    """Why the newest process ended early; None: it did not, or the log does not say."""

    def add(self, time: str, level: str, logger: str, message: str) -> None:
        """Process one message of the log."""
        self.started, self.ended = self.started or time, time
        if message.startswith("weights: "):  # the first message of a process that does not resume
            self.weights, self.stop = self.weights or message.splitlines()[0].removeprefix("weights: "), None
        if message.startswith("resuming from "):
            self.resumed += 1
            self._event(time, message)
        elif message.startswith(("stopped by ", "the run ends: ")):
            self.stop = message.splitlines()[0]
            self._event(time, self.stop)
        elif message.startswith("step ") and ": skipped, since" in message:
            self.skipped_steps += 1
        elif match := BROKEN.match(message):
            place, kind, text = match.groups()
            self.kinds.setdefault(kind, BrokenKind(kind, None, place, text)).message = text
        elif logger == "dataset.loaders" and (match := READ.match(message)):
            self._records(match)
        elif level != "INFO":
            self._warning(time, message)
        if match := STEPS.search(message):
            self.steps = int(match[1])
        elif match := SELECTS.match(message):
            self.selects = match[1]
            self.best = int(best[1]) if (best := BEST.match(message)) else self.best
        elif match := PARAMETERS.fullmatch(message):
            self.parameters, self.stop = match[0], None
            self.starts += 1

    def _records(self, match: re.Match[str]) -> None:
        self.read = match[0].split(": ", 1)[0]
        for count, kind, place in KIND.findall(match[4] or ""):
            known = self.kinds.setdefault(kind, BrokenKind(kind, 0, place))
            known.count = (known.count or 0) + int(count)

    def _event(self, time: str, text: str) -> None:
        if len(self.events) < MOST:
            self.events.append((time, text))

    def _warning(self, time: str, message: str) -> None:
        self.warning_count += 1
        self.newest_warnings.append((time, message.strip()[:1000]))
        if len(self.warnings) < MOST:
            self.warnings.append(self.newest_warnings[-1])


def read_log(path: Path, most_bytes: int | None = None) -> LogFacts:
    """Returns the facts in ``log.txt``; empty if the log does not exist.

    ``most_bytes``: if the log is longer, only its beginning and end are read, and counts are lower bounds; None: read all of it.
    """
    facts = LogFacts()
    if not path.is_file():
        return facts
    message: tuple[str, str, str, str] | None = None
    for line in _lines(path, most_bytes):
        match = LINE.match(line.rstrip("\n"))
        if match:
            if message is not None:
                facts.add(*message)
            message = (match[1], match[2], match[3], match[4])
        elif message is not None and len(message[3]) < LONGEST_LINE:  # a message may span several lines
            message = (*message[:3], f"{message[3]}\n{line.rstrip()}")
    if message is not None:
        facts.add(*message)
    return facts


def _lines(path: Path, most_bytes: int | None) -> Iterator[str]:
    """The lines of a log; if it is longer than ``most_bytes``, the middle is skipped."""
    size = path.stat().st_size
    skips = most_bytes is not None and size > most_bytes
    first = most_bytes // 10 if skips and most_bytes is not None else size
    with path.open("rb") as file:
        while line := file.readline(LONGEST_LINE):
            yield line.decode("utf-8", "replace")
            if skips and file.tell() > first:
                file.seek(size - (most_bytes or 0) + first)
                file.readline(LONGEST_LINE)  # the rest of a line
                skips = False
