"""Hand-written run folders, and their report pages."""

from __future__ import annotations

import html
import json
import logging
import re
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from run import main
from tasks.kinds import find_task
from tests.tasks.conftest import data, overrides  # noqa: F401 (fixtures)
from tests.tasks.painted import rows_of
from tools.report.charts import javascript
from utils.config import dump_config, load_config
from utils.events import BuiltModel, Event, EventLines, LoadedWeights, Started

VEGA = "/* Vega */"
ROOT = Path(__file__).parents[2]
START = (
    Started(command=["Grounding.py", "--config", "grounding.yaml"], ranks=1, trains=True),
    LoadedWeights(sources="62 of vision from old.safetensors; none randomly initialised"),
    BuiltModel(parameters=1_900_000),
)
"""The first lines of a process that does not resume."""


def event_lines(*events: Event, time: str = "2026-01-02T03:04:05") -> str:
    """Lines of ``events.jsonl``, all with the same local time."""
    handler, lines = EventLines(), ""
    for event in events:
        record = logging.LogRecord("a.b", logging.INFO, "", 0, event, None, None)
        record.created = datetime.fromisoformat(time).timestamp()
        lines += handler.format(record) + "\n"
    return lines


def config_text(task: str, settings: list[str]) -> str:
    return dump_config(load_config(ROOT / f"configs/demo/{task}.yaml", settings, find_task(task).load().config))


@pytest.fixture(name="make")
def make_run(tmp_path, overrides):  # noqa: F811
    """Writes the folder of a grounding run of ten steps by hand, with the contents requested by a test."""

    def write(
        name: str = "run",
        *settings: str,
        losses=range(10, 0, -1),
        predictions=None,
        events: str | None = None,
        **metrics,
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir(parents=True)
        settings_of_all = [*overrides("grounding"), "train.steps=10", *settings]
        (folder / "config.yaml").write_text(config_text("grounding", settings_of_all))
        (folder / "events.jsonl").write_text(event_lines(*START) if events is None else events)
        lines = [
            {"step": step, "loss": loss, "l1": loss / 2, "lr/lr=0.1,decay=0": 0.1 / step, "samples_per_s": 50.0 + step}
            | {"data_wait": 0.25, "elapsed_s": 2.0 * step}
            for step, loss in enumerate(losses, start=1)
        ]
        (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
        metric = {
            "value": 0.5,
            "unit": "share",
            "chance": 0.125,
            "published": 0.75,
            "rule": "by rule",
            "split": "f.jsonl",
        }
        measured = {"phrases": {"value": 7, "unit": "count"}, "IoU >= 0.5": metric}
        measured |= {
            metric_name.replace("_", " "): v if isinstance(v, dict) else {"value": v, "unit": "share"}
            for metric_name, v in metrics.items()
        }
        (folder / "evaluation.json").write_text(json.dumps({"test": measured}))
        if predictions is not None:
            (folder / "predictions_test.json").write_text(json.dumps(predictions))
        return folder

    return write


def boxes(count: int = 7, right: tuple[int, ...] = (0, 1)) -> list[dict]:
    """Predictions on the test split of grounding."""
    found = []
    for number, row in zip(range(count), rows_of("grounding", range(9, 9 + count)), strict=True):
        elem = row["elems"][0]
        box = elem["bb"] if number in right else [0, 0, 2, 2]
        iou = 1.0 if number in right else 0.01 * number
        found.append(
            {"image": row["image"], "phrase": elem["caption"], "predicted": box, "true": elem["bb"], "iou": iou}
        )
    return found


def report(tmp_path: Path, *folders: Path, flags: tuple[str, ...] = ()) -> str:
    """Writes a page, and returns it without Vega's JavaScript."""
    output = tmp_path / "page.html"
    assert main(["report", *map(str, folders), "--output", str(output), *flags]) == 0
    return output.read_text(encoding="utf-8").replace(javascript(), VEGA)


def charts_of(text: str) -> dict[str, dict[str, Any]]:
    """The Vega-Lite specifications on a page by title. If several have the same title, the first is used."""
    found: dict[str, dict[str, Any]] = {}
    head = r'<figure class="chart"><figcaption>(.*?)\s*(?:<span.*?)?</figcaption>'
    for title, spec in re.findall(head + r'.*?<script type="application/json">(.*?)</script>', text, re.S):
        found.setdefault(html.unescape(title.strip()), json.loads(spec))
    return found


def points_of(spec: dict[str, Any], table: str = "lines", line: int = 0) -> list[tuple[float, ...]]:
    """The points of a line in a chart."""
    return [tuple(row[1:]) for row in spec["datasets"][table]["rows"] if row[0] == line]


def section(text: str, title: str) -> str:
    """The part of a page below a heading."""
    return text.split(f">{title}</h2>")[1].split("<h2")[0]


def rows_with(text: str, words: str) -> list[str]:
    """The rows of tables that contain some words, without markup."""
    rows = re.findall(r"<tr.*?</tr>", text, re.S)
    return [" ".join(re.sub(r"<[^>]+>", " ", row).split()) for row in rows if words in row]
