"""The history of a run, from its ``events.jsonl``."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from datetime import datetime
from functools import singledispatchmethod
from pathlib import Path

from utils import events
from utils.events import Event, Unreadable, read_events

MAX_EVENTS = 50
"""Maximum number of warnings that are kept, and maximum number of stops and resumptions that are kept."""
NEWEST = 5
"""Number of most recent warnings that are kept in addition."""


@dataclass
class History:
    """The history of a run. If a run resumes from an earlier step, skipped steps and best weights after that step are discarded.

    Attributes:
        complete: False if ``events.jsonl`` is missing, as in runs of earlier versions; all other attributes are then empty.
        started, ended: the times of the first and last event.
        command, version: the command line and the version of the latest process that trains.
        stops_and_resumptions: stops and resumptions, with their times.
        stop: why the latest process ended early; None if it did not end early, or was killed.
        records: counts of the records read for batches, summed over the processes that ended normally.
        annotations: the annotation files with broken records, by config key, as read by the latest process that trains.
        read_reasons: broken records in batches, by reason.
        steps: total number of training steps of the run.
        selection_metric: the metric that selects the best weights.
        improvement: says that the last validation pass of the run was the best.
        weights: where the initial weights come from.
        unknown_events: names of events of a newer version.
    """

    complete: bool = False
    started: str | None = None
    ended: str | None = None
    command: list[str] = field(default_factory=list)
    version: str | None = None
    starts: int = 0
    resumed: int = 0
    stops_and_resumptions: list[tuple[str, Event]] = field(default_factory=list)
    stop: events.Stopped | events.Failed | events.LostRank | None = None
    skipped_steps: list[int] = field(default_factory=list)
    warnings: list[tuple[str, str]] = field(default_factory=list)
    warning_count: int = 0
    newest_warnings: deque[tuple[str, str]] = field(default_factory=lambda: deque(maxlen=NEWEST))
    records: events.CountedRecords | None = None
    annotations: dict[str, events.CountedRecords] = field(default_factory=dict)
    read_reasons: dict[str, events.BrokenReason] = field(default_factory=dict)
    steps: int | None = None
    selection_metric: str | None = None
    best_steps: list[int] = field(default_factory=list)
    improvement: events.StillImproving | None = None
    weights: str | None = None
    parameters: int | None = None
    damaged_lines: int = 0
    unknown_events: dict[str, None] = field(default_factory=dict)

    @property
    def best(self) -> int | None:
        """The step of the best weights."""
        return self.best_steps[-1] if self.best_steps else None

    @property
    def reasons(self) -> list[events.BrokenReason]:
        """All broken records by reason, most frequent first."""
        reasons = dict(self.read_reasons)
        for file in self.annotations.values():
            for found in file.reasons:
                reasons[found.reason] = _merged(reasons.get(found.reason), found)
        return sorted(reasons.values(), key=lambda reason: -(reason.count or 0))

    def shares(self) -> list[str]:
        """Returns texts that say how many records are broken, in the batches and in each annotation file."""
        counted = filter(None, [self.records, *self.annotations.values()])
        return [records.share() for records in counted]

    def add(self, time: datetime, event: Event) -> None:
        """Adds the next event."""
        self.ended = f"{time:%Y-%m-%d %H:%M:%S}"
        self.started = self.started or self.ended
        self._add(event)

    @singledispatchmethod
    def _add(self, event: Event) -> None:
        """Ignores events that the history does not need."""

    @_add.register
    def _(self, event: events.Started) -> None:
        self.starts += 1
        self.stop = None
        self.version = event.version
        if event.trains or not self.command:
            self.command = event.command
            self.annotations.clear()  # annotation files are read at every start

    @_add.register
    def _(self, event: events.Resumed) -> None:
        self.resumed += 1
        self._add_stop_or_resumption(event)
        self.skipped_steps = [step for step in self.skipped_steps if step <= event.step]
        self.best_steps = [step for step in self.best_steps if step <= event.step]
        if self.improvement is not None and self.improvement.step > event.step:
            self.improvement = None

    @_add.register
    def _(self, event: events.Stopped | events.Failed | events.LostRank) -> None:
        self.stop = event
        self._add_stop_or_resumption(event)

    @_add.register
    def _(self, event: events.LoadedWeights) -> None:
        self.weights = self.weights or event.sources

    @_add.register
    def _(self, event: events.BuiltModel) -> None:
        self.parameters = event.parameters

    @_add.register
    def _(self, event: events.Planned) -> None:
        self.steps = event.steps

    @_add.register
    def _(self, event: events.Validated) -> None:
        self.selection_metric = event.metric
        if event.best:
            self.best_steps.append(event.step)

    @_add.register
    def _(self, event: events.StillImproving) -> None:
        self.improvement = event

    @_add.register
    def _(self, event: events.SkippedStep) -> None:
        self.skipped_steps.append(event.step)

    @_add.register
    def _(self, event: events.SkippedRecord) -> None:
        found = events.BrokenReason(reason=event.reason, count=None, place=event.place, detail=event.detail)
        self.read_reasons[event.reason] = _merged(self.read_reasons.get(event.reason), found)

    @_add.register
    def _(self, event: events.CountedRecords) -> None:
        if event.key is not None:
            self.annotations[event.key] = event
            return
        before = self.records or events.CountedRecords(read=0, broken=0)
        self.records = events.CountedRecords(read=before.read + event.read, broken=before.broken + event.broken)
        for found in event.reasons:
            self.read_reasons[found.reason] = _merged(self.read_reasons.get(found.reason), found)

    @_add.register
    def _(self, event: events.Warned | events.SkippedCheckpoint | events.Stalled) -> None:
        self.warning_count += 1
        self.newest_warnings.append((str(self.ended), str(event).strip()[:1000]))
        if len(self.warnings) < MAX_EVENTS:
            self.warnings.append(self.newest_warnings[-1])

    def _add_stop_or_resumption(self, event: Event) -> None:
        if len(self.stops_and_resumptions) < MAX_EVENTS:
            self.stops_and_resumptions.append((str(self.ended), event))

    def remarks(self, path: Path) -> list[str]:
        """Returns remarks, for the reader of a report, about everything that could not be read in ``path``."""
        if not self.complete:
            return [
                f"{path.name} is missing, as in runs of earlier versions: starts, stops, skipped steps, broken records and "
                "warnings are unknown; log.txt has them"
            ]
        remarks = []
        if self.damaged_lines:
            remarks.append(f"{path.name}: {self.damaged_lines:,} damaged lines are skipped")
        if self.unknown_events:
            names = ", ".join(list(self.unknown_events)[:MAX_EVENTS])
            remarks.append(f"{path.name}: events of a newer version are skipped: {names}")
        return remarks


def _merged(before: events.BrokenReason | None, found: events.BrokenReason) -> events.BrokenReason:
    """Merges two counts of broken records for the same reason. Keeps the first record of ``before``."""
    if before is None:
        return found
    counts = [each.count for each in (before, found) if each.count is not None]
    return before.model_copy(update={"count": sum(counts) if counts else None, "detail": before.detail or found.detail})


def read_history(path: Path) -> History:
    """Reads the history of a run from its ``events.jsonl``. Without the file, the history is empty."""
    history = History(complete=path.is_file())
    if not history.complete:
        return history
    for found in read_events(path):
        if not isinstance(found, Unreadable):
            history.add(found.time, found.event)
        elif found.unknown is None:
            history.damaged_lines += 1
        else:
            history.unknown_events.setdefault(found.unknown)
    return history
