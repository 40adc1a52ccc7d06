"""Builds the page: the sections of one run; for several runs, their differences, followed by each run's sections, collapsed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from html import escape

from tools.report import curves, metrics_table
from tools.report.agreement import agreement
from tools.report.configs import config_of, differences
from tools.report.examples import SplitPredictions, read_predictions, section
from tools.report.over_time import over_time
from tools.report.pictures import Room
from tools.report.style import STYLE
from tools.runs.history import History
from tools.runs.reading import Run
from utils.version import VERSION

Section = tuple[str, str]
"""A title and its HTML."""


def page_of(runs: Sequence[Run], count: int, room: Room | None = None) -> str:
    """Returns the page of one or several runs, with up to ``count`` predictions of each split."""
    room = Room() if room is None else room
    predictions = [read_predictions(run) if count else [] for run in runs]
    if len(runs) == 1:
        title, sections = runs[0].name, list(_sections(runs[0], predictions[0], count, room))
        head = f"<h1>{escape(title)}</h1>{_head(runs[0])}"
    else:
        title = f"{len(runs)} runs"
        head = f"<h1>{title}</h1>{_heads(runs)}"
        sections = [*_comparison(runs, predictions, room), ("Each run", _folded(runs, predictions, count, room))]
    links = "".join(f'<a href="#s{number}">{escape(name)}</a>' for number, (name, _) in enumerate(sections))
    body = "".join(f'<h2 id="s{number}">{escape(name)}</h2>{text}' for number, (name, text) in enumerate(sections))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n"
        f'<body>{head}<nav>{links}</nav>{body}<p class="faint">run.py report, version {VERSION}</p></body></html>\n'
    )


def _sections(run: Run, predictions: Sequence[SplitPredictions], count: int, room: Room) -> Iterator[Section]:
    shown = section(run, predictions, count, room)  # first, since it adds to the remarks
    yield "Metrics", metrics_table.table_of(run)
    yield "Losses", curves.training_charts([run])
    yield "Validation", curves.validation_charts([run])
    yield "Predictions", shown
    yield "Predictions over time", over_time(run)
    yield "Throughput", curves.throughput([run])
    yield "Records and faults", _records(run) + _faults(run)
    yield "Config", config_of(run)


def _comparison(
    runs: Sequence[Run], predictions: Sequence[Sequence[SplitPredictions]], room: Room
) -> Iterator[Section]:
    yield "Metrics", metrics_table.comparison(runs)
    yield "Config differences", differences(runs)
    yield "Losses", curves.training_charts(runs)
    yield "Validation", curves.validation_charts(runs)
    share = room.share(3)
    if same := agreement(runs, predictions, share):
        yield "Examples in common", same
    room.give_back(share)
    yield "Throughput", curves.throughput(runs)


def _folded(runs: Sequence[Run], predictions: Sequence[Sequence[SplitPredictions]], count: int, room: Room) -> str:
    parts = []
    for number, (run, found) in enumerate(zip(runs, predictions, strict=True)):
        share = room.share(len(runs) - number)
        sections = "".join(f"<h3>{escape(title)}</h3>{text}" for title, text in _sections(run, found, count, share))
        room.give_back(share)
        parts.append(
            f'<details class="run"><summary><span class="key"><i class="c{number % 8}"></i></span>{escape(run.name)}</summary>'
            f"{_head(run)}{sections}</details>"
        )
    return "".join(parts)


def _head(run: Run) -> str:
    """The known facts about the run as a list."""
    facts = [(name, fact) for name, fact in _facts(run) if fact]
    return f"<dl>{''.join(f'<dt>{escape(name)}</dt><dd>{fact}</dd>' for name, fact in facts)}</dl>"


def _heads(runs: Sequence[Run]) -> str:
    """A table with the state and start of each run."""
    rows = []
    for number, run in enumerate(runs):
        cells = [
            _state(run),
            escape(str(run.task or "unknown")),
            escape(run.history.started or ""),
            escape(str(run.folder)),
        ]
        name = f'<i class="c{number % 8}"></i> {escape(run.name)}'
        rows.append(f"<tr><th>{name}</th>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    head = "".join(f"<th>{title}</th>" for title in ("", "state", "task", "started", "folder"))
    return f'<div class="scroll"><table class="left"><tr class="head">{head}</tr>{"".join(rows)}</table></div>'


def _facts(run: Run) -> Iterator[tuple[str, str]]:
    """Yield facts about a run by name, as HTML."""
    command = run.made_by.get("command")
    words = [str(word) for word in command] if isinstance(command, list) else []
    config = words[words.index("--config") + 1] if "--config" in words[:-1] else ""
    overrides = " ".join(word for word in words if "=" in word and not word.startswith("-"))
    weights = run.history.weights or ""
    if run.start and run.start not in weights:
        weights = f"init.checkpoint {run.start}" + (f"; {weights}" if weights else "")
    time = " to ".join(filter(None, [run.history.started, run.history.ended]))
    elapsed = run.metrics.series.get("elapsed_s")
    trained = f"{_duration(elapsed.last[1])} in steps" if elapsed is not None and elapsed.last else ""
    yield "state", _state(run)
    yield "task", escape(str(run.task or "unknown"))
    yield "folder", escape(str(run.folder))
    yield "config file", escape(config or "not recorded by the run; its resolved config is below")
    yield "overrides", escape(overrides)
    yield "weights", escape(weights or "not recorded by the run")
    yield "size", "" if run.history.parameters is None else f"{run.history.parameters / 1e6:.1f} M parameters"
    yield "version", escape(_version(run))
    yield "date", escape(", ".join(filter(None, [time, trained])))
    yield "resumed", escape(f"{run.history.resumed} times" if run.history.resumed else "")
    for remark in run.remarks:
        yield "remark", f'<span class="remark">{escape(remark)}</span>'


def _version(run: Run) -> str:
    code = run.made_by.get("code")
    known = [each for each in code if isinstance(each, dict)] if isinstance(code, list) else []
    if known:
        return "; ".join(f"{each.get('version')}, sources {str(each.get('sha256', ''))[:12]}" for each in known)
    return f"not recorded by the run; this page is by version {VERSION}"


def _state(run: Run) -> str:
    state = run.state
    return f'<b class="{"yes" if state.well else "no"}">{escape(state.text)}</b>'


def _records(run: Run) -> str:
    """Broken records by kind."""
    history = run.history
    read = "" if history.records is None else history.records.share()
    if not history.kinds:
        return f"<p>{escape(read or 'The run did not record how many records it read; it reported no broken records.')}</p>"
    rows = []
    for kind in sorted(history.kinds.values(), key=lambda kind: -(kind.count or 0)):
        count = "not counted" if kind.count is None else f"{kind.count:,}"
        cells = (kind.kind, count, kind.location, kind.message)
        rows.append(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>")
    head = "<tr class=head><th>kind</th><th>parts</th><th>first</th><th>message</th></tr>"
    text = read or "Not counted: the run ended before it wrote the number."
    return f'<p>{escape(text)}</p><div class="scroll"><table class="left">{head}{"".join(rows)}</table></div>'


def _faults(run: Run) -> str:
    """Resumptions, stops, skipped steps, and warnings."""
    history = run.history
    turns = [(time, str(event).partition("\n")[0]) for time, event in history.turns]
    parts = [_events("Resumed and stopped", turns)] if turns else ["<p>The run was never stopped or resumed.</p>"]
    if history.skipped_steps:
        parts.append(
            f"<p>{len(history.skipped_steps):,} steps were skipped, since a loss or gradient was not finite.</p>"
        )
    not_finite = {name: series.not_finite for name, series in run.metrics.series.items() if series.not_finite}
    if not_finite:
        counts = ", ".join(f"{count} of {name}" for name, count in not_finite.items())
        parts.append(f"<p>Values in metrics.jsonl that are not finite: {escape(counts)}.</p>")
    if history.warnings:
        parts.append(_warnings(history))
    return "".join(parts)


def _events(title: str, events: Sequence[tuple[str, str]]) -> str:
    rows = "".join(f"<tr><th>{escape(time)}</th><td>{escape(text)}</td></tr>" for time, text in events)
    return f'<h4>{escape(title)}</h4><div class="scroll"><table class="left">{rows}</table></div>'


def _warnings(history: History) -> str:
    shown = f"{history.warning_count:,} warnings" + (
        f", the first {len(history.warnings)}" if history.warning_count > len(history.warnings) else ""
    )
    return f"<details><summary>{shown}</summary>{_events('', history.warnings)}</details>"


def _duration(seconds: float) -> str:
    units: list[tuple[float, str, Callable[[float], str]]] = [
        (86400.0, "days", lambda value: f"{value:.1f}"),
        (3600.0, "hours", lambda value: f"{value:.1f}"),
        (60.0, "minutes", lambda value: f"{value:.0f}"),
    ]
    size, name, text = next((unit for unit in units if seconds >= 2 * unit[0]), (1.0, "seconds", lambda v: f"{v:.0f}"))
    return f"{text(seconds / size)} {name}"
