"""The events of a run. A run writes its events to ``events.jsonl``, one JSON object per line.

Code reports that something has happened by logging an event instead of a string::

    logger.warning(SkippedStep(step=7, losses={"loss": math.nan}))

The screen and ``log.txt`` show the event's message, ``str(event)``. ``events.jsonl`` contains the event's fields. Tools read only
the fields, so messages may be reworded at any time. Any other warning is written as :class:`Warned`.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError

from utils.files import open_regular
from utils.lines import bounded_lines
from utils.version import VERSION

SCHEMA = 1
"""Version of the events. It is incremented when the meaning of a field changes, but not for new events or fields."""
LONGEST_LINE = 1_000_000
"""Maximum length of a line in bytes. Longer lines count as damaged."""


class Event(BaseModel):
    """Something that happened in a run. ``str(event)`` is the message that the log shows."""

    model_config = ConfigDict(frozen=True)


class Started(Event):
    """Rank 0 started, with the command line ``command``, in a run with ``ranks`` ranks. ``trains`` is false if the run only
    evaluates."""

    command: list[str]
    ranks: int
    trains: bool
    version: str = VERSION
    schema_version: int = SCHEMA

    def __str__(self) -> str:
        ranks = "1 rank" if self.ranks == 1 else f"{self.ranks} ranks"
        return f"version {self.version} starts to {'train' if self.trains else 'evaluate'} on {ranks}"


class SkippedCheckpoint(Event):
    """A checkpoint is damaged, so an older checkpoint is used. ``fault`` names the checkpoint and says what is wrong with it."""

    fault: str

    def __str__(self) -> str:
        return f"skipped a checkpoint: {self.fault}"


class Resumed(Event):
    """Training resumes after ``step``, from the checkpoint in ``folder``."""

    step: int
    folder: str

    def __str__(self) -> str:
        return f"resuming from {self.folder}"


class LoadedWeights(Event):
    """A model was initialised. ``sources`` says how many tensors of each module come from which file, or are random. ``details``
    contains lines about individual tensors."""

    sources: str
    details: list[str] = []

    def __str__(self) -> str:
        return "\n".join([f"weights: {self.sources}", *self.details])


class BuiltModel(Event):
    """A model with this number of ``parameters`` was built."""

    parameters: int

    def __str__(self) -> str:
        return f"{self.parameters / 1e6:.1f} M parameters"


class Planned(Event):
    """The sizes of a training run were computed. ``records`` is the number of records in each stream (type of training data),
    ``examples_per_step`` the number of examples in a step over all ranks, and ``epochs`` the number of passes over the first
    stream."""

    records: dict[str, int]
    examples_per_step: int
    steps: int
    epochs: float

    def __str__(self) -> str:
        records = ", ".join(f"{count} {stream}" for stream, count in self.records.items())
        return (
            f"records: {records}; {self.examples_per_step} examples per step over all ranks; {self.steps} steps are "
            f"{self.epochs:.1f} epochs of {next(iter(self.records))}"
        )


class SkippedStep(Event):
    """The weights were not updated after ``step``, because a loss or gradient was not finite. ``losses`` contains the losses by
    name, with null for those that are not finite."""

    step: int
    losses: dict[str, float | None]

    def __str__(self) -> str:
        losses = ", ".join(
            f"{name} {'not finite' if value is None else f'{value:.4g}'}" for name, value in self.losses.items()
        )
        return f"step {self.step}: skipped, since a loss or gradient is not finite ({losses})"


class SkippedRecord(Event):
    """The first record that is broken for a ``reason`` was skipped. ``place`` is its file and line, or its shard and member, and
    ``detail`` says what is wrong with it. Earlier runs wrote ``location``, ``kind`` and ``message``."""

    place: str = Field(validation_alias=AliasChoices("place", "location"))
    reason: str = Field(validation_alias=AliasChoices("reason", "kind"))
    detail: str = Field(validation_alias=AliasChoices("detail", "message"))

    def __str__(self) -> str:
        record = f"{self.place}: {self.reason}: {self.detail}"
        return f"skipped a broken record: {record} (more for this reason are counted, not logged)"


class BrokenReason(BaseModel):
    """Records, or parts of records, that are broken for one ``reason``. ``count`` is their number, or None before they
    are counted. ``place`` is the location of the first of them, and ``detail`` says what is wrong with it. Earlier runs wrote
    ``kind``, ``first`` and ``message``."""

    model_config = ConfigDict(frozen=True)

    reason: str = Field(validation_alias=AliasChoices("reason", "kind"))
    count: int | None
    place: str = Field(validation_alias=AliasChoices("place", "first"))
    detail: str = Field("", validation_alias=AliasChoices("detail", "message"))


class CountedRecords(Event):
    """A process of rank 0 counted the records that it read (``read``), and how many of them were broken and skipped (``broken``).
    ``reasons`` lists the reasons, most frequent first. ``key`` is the config key of an annotation file that was
    read at the start, or null for the records of all batches."""

    read: int
    broken: int
    reasons: list[BrokenReason] = Field([], validation_alias=AliasChoices("reasons", "kinds"))
    key: str | None = None

    def share(self) -> str:
        """Returns a summary of how many records are broken."""
        file = "" if self.key is None else f"{self.key}: "
        if not self.broken:
            return f"{file}{self.read} records read, none broken"
        return f"{file}{self.broken} of {self.read} records ({100 * self.broken / max(self.read, 1):.1f}%) are broken"

    def listed(self) -> str:
        """Lists the reasons, each with its first record."""
        return "; ".join(
            f"{each.count} {each.reason} (first: {': '.join(filter(None, [each.place, each.detail]))})"
            for each in self.reasons
        )

    def __str__(self) -> str:
        return f"{self.share()}: {self.listed()}" if self.broken else self.share()


class Validated(Event):
    """A validation pass ran after ``step``. ``value`` is the value of ``metric``, which selects the best weights, or null if it
    is not finite. ``best`` is true if the best weights were replaced, and ``averaged`` is true if averaged weights were
    validated. ``validation.jsonl`` contains all metrics."""

    step: int
    metric: str
    value: float | None
    best: bool
    averaged: bool

    def __str__(self) -> str:
        value = "nan" if self.value is None else f"{self.value:.4f}"
        averaged = " of the averaged weights" if self.averaged else ""
        return f"step {self.step}: validation {self.metric} {value}{averaged}{', the best so far' if self.best else ''}"


class StillImproving(Event):
    """The last validation pass of a run is the best. ``before`` is the best value of ``metric`` in the passes before."""

    step: int
    metric: str
    value: float
    before: float

    def __str__(self) -> str:
        return (
            f"step {self.step}: {self.metric} was still improving ({self.value:.4f} after the last step, at best "
            f"{self.before:.4f} before); a longer run may be better"
        )


class SavedCheckpoint(Event):
    """The checkpoint of ``step`` was written completely."""

    step: int

    def __str__(self) -> str:
        return f"step {self.step}: saved a checkpoint"


class Stalled(Event):
    """A rank has not finished a step for ``waited_s`` seconds, and is in ``phase`` of ``step``. ``silent_ranks`` contains the
    other ranks that have stopped sending heartbeats, with the last known phase of each. ``stacks`` is the file with the stacks of
    the rank's threads."""

    rank: int
    waited_s: float
    step: int
    phase: str
    silent_ranks: dict[int, str]
    stacks: str | None

    def details(self) -> str:
        """Returns the end of the message, which says where the stacks are and which ranks are silent."""
        stacks = "" if self.stacks is None else f"; its stacks are in {self.stacks}"
        silent = (
            f"; rank {rank} has stopped sending heartbeats, last seen in {phase}"
            for rank, phase in self.silent_ranks.items()
        )
        return stacks + "".join(silent)

    def __str__(self) -> str:
        return (
            f"rank {self.rank} has not finished a step for {self.waited_s:.0f} s (train.stall_s): it is in step "
            f"{self.step}, phase {self.phase}{self.details()}"
        )


class LostRank(Event):
    """Another rank was lost, so this process ends. The launcher may restart the run."""

    message: str

    def __str__(self) -> str:
        return f"a rank was lost: {self.message}"


class Stopped(Event):
    """The run was asked to stop, by the signal ``by``. ``message`` says what was saved."""

    by: str
    message: str

    def __str__(self) -> str:
        return f"stopped by {self.by}: {self.message}"


class Failed(Event):
    """The run ended with an error. ``traceback`` is null for a user error, whose message is self-explanatory."""

    message: str
    traceback: str | None = None

    def __str__(self) -> str:
        return "\n".join(filter(None, [f"the run ended with an error: {self.message}", self.traceback]))


class Finished(Event):
    """The process finished everything that it was started for: training, evaluation, or both."""

    def __str__(self) -> str:
        return "finished"


class Warned(Event):
    """Any other warning was logged, by the module ``logger``."""

    message: str
    logger: str

    def __str__(self) -> str:
        return self.message


EVENTS: dict[str, type[Event]] = {
    "started": Started,
    "skipped_checkpoint": SkippedCheckpoint,
    "resumed": Resumed,
    "loaded_weights": LoadedWeights,
    "built_model": BuiltModel,
    "planned": Planned,
    "skipped_step": SkippedStep,
    "skipped_record": SkippedRecord,
    "counted_records": CountedRecords,
    "validated": Validated,
    "still_improving": StillImproving,
    "saved_checkpoint": SavedCheckpoint,
    "stalled": Stalled,
    "lost_rank": LostRank,
    "stopped": Stopped,
    "failed": Failed,
    "finished": Finished,
    "warned": Warned,
}
"""Event classes by their name in ``events.jsonl``."""

_NAMES = {kind: name for name, kind in EVENTS.items()}


def finite_or_none(value: float) -> float | None:
    """Returns ``value``, or None if it is not finite, because JSON cannot represent infinity and NaN."""
    return value if math.isfinite(value) else None


class EventLines(logging.Formatter):
    """Formats a log record as a line of ``events.jsonl``."""

    def format(self, record: logging.LogRecord) -> str:
        event = record.msg
        if not isinstance(event, Event):
            event = Warned(message=record.getMessage(), logger=record.name)
        time = datetime.fromtimestamp(record.created).astimezone().isoformat(timespec="milliseconds")
        return json.dumps({"time": time, "event": _NAMES[type(event)], **event.model_dump()}, ensure_ascii=False)


def is_event_or_warning(record: logging.LogRecord) -> bool:
    """True if a log record belongs in ``events.jsonl``, that is, if it is an event or a warning."""
    return isinstance(record.msg, Event) or record.levelno >= logging.WARNING


class TimedEvent(NamedTuple):
    """An event with its time, in the time zone of this machine."""

    time: datetime
    event: Event


class Unreadable(NamedTuple):
    """A line of ``events.jsonl`` that is not a known event. ``line`` is its number. ``unknown`` is the name of the event if it
    was written by a newer version, or None if the line is damaged."""

    line: int
    unknown: str | None


def read_events(path: Path) -> Iterator[TimedEvent | Unreadable]:
    """Yields the events of a run from ``events.jsonl``, in order, in bounded memory."""
    with open_regular(path) as file:
        for number, line in bounded_lines(file, LONGEST_LINE):
            if line.strip():
                yield _event_of(number, line)


def _event_of(number: int, line: str) -> TimedEvent | Unreadable:
    try:
        values: Any = json.loads(line)
        time = datetime.fromisoformat(values["time"]).astimezone()
        name = values["event"]
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return Unreadable(number, None)
    if not isinstance(name, str):
        return Unreadable(number, None)
    if name not in EVENTS:
        return Unreadable(number, name[:100])
    fields: Mapping[str, Any] = {key: value for key, value in values.items() if key not in ("time", "event")}
    try:
        return TimedEvent(time, EVENTS[name].model_validate(fields))
    except ValidationError:
        return Unreadable(number, None)
