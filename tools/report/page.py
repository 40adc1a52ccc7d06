"""The page about a run, or about several runs: collects its content, and lays it out with the templates."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from tools.report.agreement import common_splits
from tools.report.charts import javascript
from tools.report.configs import config_of, differences
from tools.report.curves import throughput, training_curves, validation_curves
from tools.report.examples import SplitPredictions, read_predictions, shown_predictions
from tools.report.facts import facts_of, faults_of
from tools.report.groups import Group, columns_of, grouped, has_effect
from tools.report.metrics import compared_metrics, metrics_of, percent, spread_text
from tools.report.over_time import over_time
from tools.report.pictures import Room
from tools.report.verdict import verdicts
from tools.runs.reading import Run
from utils.version import VERSION

TEMPLATES = Path(__file__).parent / "templates"


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


def _sections(run: Run, colour: int, predictions: Sequence[SplitPredictions], count: int, room: Room) -> dict[str, Any]:
    """Returns everything that the templates show of one run."""
    alone = [Group(run.name, 0, (run,))]
    return {
        "colour": colour,
        "predictions": shown_predictions(run, predictions, count, room),
        "over_time": over_time(run),
        "facts": facts_of(run),
        "metrics": metrics_of(run),
        "losses": training_curves(alone),
        "validation": validation_curves(alone),
        "throughput": throughput(alone),
        "faults": faults_of(run),
        "config": config_of(run),
    }


def _comparison(groups: Sequence[Group], predictions: dict[Path, list[SplitPredictions]], room: Room) -> dict[str, Any]:
    """Returns everything that the templates show of several runs side by side."""
    columns = columns_of(groups)
    alone = [Group(run.name, column.colour, (run,)) for column in columns for run in column.runs]
    differ = differences([(group.name, group.runs) for group in columns])
    share = room.share(3)
    common = common_splits(columns, predictions, share)
    room.give_back(share)
    return {
        "verdicts": verdicts(groups),
        "differences": differ,
        "causes": [(key, values) for key, values in differ.rows if has_effect(key)],
        "rows": [
            {
                "name": run.name,
                "colour": column.colour,
                "group": _group_of(run, groups),
                "state": run.state,
                "task": run.task or "unknown",
                "started": run.history.started or "",
                "remarks": run.remarks,
            }
            for column in columns
            for run in column.runs
        ],
        "groups": groups,
        "metrics": compared_metrics(groups),
        "alone": alone,
        "every_run": compared_metrics(alone) if len(alone) > len(groups) else None,
        "losses": training_curves(groups),
        "validation": validation_curves(groups),
        "common": common,
        "throughput": throughput(groups),
    }


def _group_of(run: Run, groups: Sequence[Group]) -> str:
    """Returns the name of a run's group, or "" if the run is alone in its group."""
    return next((group.name for group in groups if len(group.runs) > 1 and any(run is one for one in group.runs)), "")


def _charts(comparison: dict[str, Any] | None, runs: Sequence[dict[str, Any]]) -> Iterator[bool]:
    """Yields whether each section has charts."""
    for part in [comparison, *runs]:
        if part is not None:
            for curves in (part["losses"], part["validation"].curves, part["throughput"].curves):
                yield bool(curves.charts)
