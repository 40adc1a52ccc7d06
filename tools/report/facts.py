"""The facts at the top of a run's page, and what went wrong while the run was active: states, broken records, stops, warnings.

This module reads everything that the page shows of a run's events.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tools.runs.reading import Run, State
from utils.events import BrokenReason
from utils.printing import counted, duration
from utils.version import VERSION

TimedText = tuple[str, str]
"""A time and a message."""


@dataclass(frozen=True)
class Facts:
    """The facts at the top of a page.

    Attributes:
        listed: names and values of known facts.
        remarks: texts that say which files cannot be read, and why.
    """

    name: str
    state: State
    listed: list[tuple[str, str]]
    remarks: list[str]


@dataclass(frozen=True)
class Faults:
    """Problems of a run.

    Attributes:
        known: whether the run has events.
        read: text that says how many records were read.
        notes: texts about skipped steps and values that are not finite.
    """

    known: bool
    read: str
    broken: list[BrokenReason]
    events: list[TimedText]
    notes: list[str]
    warnings: list[TimedText]
    warning_count: int


def facts_of(run: Run) -> Facts:
    """Returns what is known about a run. Call this function after everything else has been read, because reading adds remarks."""
    return Facts(run.name, run.state, [(name, fact) for name, fact in _facts(run) if fact], run.remarks)


def faults_of(run: Run) -> Faults:
    """Returns broken records by kind, resumptions, stops, skipped steps and warnings."""
    history = run.history
    if not history.complete:
        read = "Broken records, stops and warnings are unknown, since the run has no events.jsonl."
    elif shares := history.shares():
        read = "; ".join(shares)
    elif history.reasons:
        read = "Not counted: the run ended before it wrote the number."
    else:
        read = "The run did not record how many records it read. It reported no broken records."
    notes = []
    if history.skipped_steps:
        notes.append(
            f"{counted(len(history.skipped_steps), 'step was', 'steps were')} skipped, since a loss or gradient was not finite."
        )
    infinite = {name: series.not_finite for name, series in run.metrics.series.items() if series.not_finite}
    if infinite:
        counts = ", ".join(f"{count} of {name}" for name, count in infinite.items())
        notes.append(f"Values in metrics.jsonl that are not finite: {counts}.")
    stops = [(time, str(event).partition("\n")[0]) for time, event in history.stops_and_resumptions]
    return Faults(history.complete, read, history.reasons, stops, notes, history.warnings, history.warning_count)


def _facts(run: Run) -> Iterator[tuple[str, str]]:
    command = run.made_by.get("command")
    words = [str(word) for word in command] if isinstance(command, list) else run.history.command
    weights = run.history.weights or ""
    if run.start and run.start not in weights:
        weights = f"init.checkpoint {run.start}" + (f"; {weights}" if weights else "")
    time = " to ".join(filter(None, [run.history.started, run.history.ended]))
    elapsed = run.metrics.series.get("elapsed_s")
    trained = f"{duration(elapsed.last[1])} of training" if elapsed is not None and elapsed.last else ""
    yield "task", str(run.task or "unknown")
    yield "folder", str(run.folder)
    yield "config file", _config_file(words) or "not recorded by the run; its resolved config is below"
    yield "overrides", " ".join(word for word in words[1:] if "=" in word and not word.startswith("-"))
    yield "weights", weights or "not recorded by the run"
    yield "size", "" if run.history.parameters is None else f"{run.history.parameters / 1e6:.1f} M parameters"
    yield "version", _version(run)
    yield "date", ", ".join(filter(None, [time, trained]))
    yield "resumed", _times(run.history.resumed) if run.history.resumed else ""


def _version(run: Run) -> str:
    code = run.made_by.get("code")
    known = [each for each in code if isinstance(each, dict)] if isinstance(code, list) else []
    if known:
        return "; ".join(f"{each.get('version')}, sources {str(each.get('sha256', ''))[:12]}" for each in known)
    return run.history.version or f"not recorded by the run; this page is by version {VERSION}"


def _config_file(command: Sequence[str]) -> str:
    """Returns the value of --config in a command line."""
    for word, following in itertools.pairwise([*command, ""]):
        if word == "--config":
            return following
        if word.startswith("--config="):
            return word.removeprefix("--config=")
    return ""


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
