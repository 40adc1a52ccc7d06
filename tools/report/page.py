"""The page about a run, or about several runs: collects its content, and lays it out with the templates."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from tools.report.agreement import CommonSplit, common_splits
from tools.report.charts import javascript
from tools.report.configs import Differences, ShownConfig, config_of, differences
from tools.report.curves import (
    Curves,
    Throughput,
    Validation,
    throughput,
    training_curves,
    validation_curves,
)
from tools.report.examples import ShownPredictions, SplitPredictions, read_predictions, shown_predictions
from tools.report.facts import Facts, Faults, facts_of, faults_of
from tools.report.groups import Group, columns_of, grouped, has_effect
from tools.report.metrics import (
    ComparedMetrics,
    SplitMetrics,
    compared_metrics,
    metrics_of,
    percent,
    spread_text,
)
from tools.report.over_time import OverTime, over_time
from tools.report.pictures import Room
from tools.report.verdict import Verdict, verdicts
from tools.runs.reading import Run, State
from utils.version import VERSION

TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class RunSections:
    """Everything that the page shows of one run.

    Attributes:
        colour: index of the run's colour.
    """

    facts: Facts
    colour: int
    metrics: list[SplitMetrics]
    losses: Curves
    validation: Validation
    predictions: ShownPredictions
    over_time: OverTime | None
    throughput: Throughput
    faults: Faults
    config: ShownConfig | None


@dataclass(frozen=True)
class RunRow:
    """A run in the table of a comparison.

    Attributes:
        group: name of the run's group, if the group has several runs.
        remarks: texts about files that cannot be read.
    """

    name: str
    colour: int
    group: str
    state: State
    task: str
    started: str
    remarks: list[str]


@dataclass(frozen=True)
class Comparison:
    """Everything that the page shows of several runs side by side.

    Attributes:
        groups: groups of runs that differ only in their seed; these are the columns of ``metrics``.
        alone: every run as a separate group; these are the columns of ``every_run``.
        every_run: metrics of every run, or None if they would equal ``metrics``.
        causes: config keys that differ and may explain a difference.
    """

    groups: list[Group]
    verdicts: list[Verdict]
    differences: Differences
    causes: list[tuple[str, list[str]]]
    rows: list[RunRow]
    metrics: ComparedMetrics
    alone: list[Group]
    every_run: ComparedMetrics | None
    losses: Curves
    validation: Validation
    common: list[CommonSplit]
    throughput: Throughput


def page_of(runs: Sequence[Run], count: int, room: Room | None = None) -> str:
    """Returns the page about one or several runs, with up to ``count`` predictions from each split."""
    room = Room() if room is None else room
    predictions = {run.folder: read_predictions(run) if count else [] for run in runs}
    groups = grouped(runs)
    comparison = _comparison(groups, predictions, room) if len(runs) > 1 else None
    colours = {run.folder: group.colour for group in columns_of(groups) for run in group.runs}
    sections = []
    for number, run in enumerate(runs):
        share = room.share(len(runs) - number)
        sections.append(_sections(run, colours[run.folder], predictions[run.folder], count, share))
        room.give_back(share)
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    environment.filters |= {"percent": percent, "spread": spread_text}
    return environment.get_template("page.html").render(
        title=runs[0].name if comparison is None else f"{len(runs)} runs",
        comparison=comparison,
        runs=sections,
        javascript=javascript() if any(_charts(comparison, sections)) else "",
        version=VERSION,
    )


def _sections(run: Run, colour: int, predictions: Sequence[SplitPredictions], count: int, room: Room) -> RunSections:
    alone = [Group(run.name, 0, (run,))]
    shown = shown_predictions(run, predictions, count, room)
    kept = over_time(run)
    return RunSections(
        facts=facts_of(run),
        colour=colour,
        metrics=metrics_of(run),
        losses=training_curves(alone),
        validation=validation_curves(alone),
        predictions=shown,
        over_time=kept,
        throughput=throughput(alone),
        faults=faults_of(run),
        config=config_of(run),
    )


def _comparison(groups: Sequence[Group], predictions: dict[Path, list[SplitPredictions]], room: Room) -> Comparison:
    columns = columns_of(groups)
    alone = [Group(run.name, column.colour, (run,)) for column in columns for run in column.runs]
    differ = differences([(group.name, group.runs) for group in columns])
    share = room.share(3)
    common = common_splits(columns, predictions, share)
    room.give_back(share)
    return Comparison(
        verdicts=verdicts(groups),
        differences=differ,
        causes=[(key, values) for key, values in differ.rows if has_effect(key)],
        rows=[
            RunRow(
                run.name,
                column.colour,
                _group_of(run, groups),
                run.state,
                str(run.task or "unknown"),
                run.history.started or "",
                run.remarks,
            )
            for column in columns
            for run in column.runs
        ],
        groups=list(groups),
        metrics=compared_metrics(groups),
        alone=alone,
        every_run=compared_metrics(alone) if len(alone) > len(groups) else None,
        losses=training_curves(groups),
        validation=validation_curves(groups),
        common=common,
        throughput=throughput(groups),
    )


def _group_of(run: Run, groups: Sequence[Group]) -> str:
    """Returns the name of a run's group, or "" if the run is alone in its group."""
    return next((group.name for group in groups if len(group.runs) > 1 and any(run is one for one in group.runs)), "")


def _charts(comparison: Comparison | None, runs: Sequence[RunSections]) -> Iterator[bool]:
    """Yields whether each section has charts."""
    for part in [comparison, *runs]:
        if part is not None:
            yield from (bool(curves.charts) for curves in (part.losses, part.validation.curves, part.throughput.curves))
