"""``python run.py tables``: lists the cells of the paper's tables, the runs that reproduce them, and missing files."""

from __future__ import annotations

import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tools.reproduce.cells import ReadyCell, chosen, ready
from utils.commands import FLAGS
from utils.flags import named
from utils.image_size import in_words

WIDTH = 110


@FLAGS
@dataclass(frozen=True, kw_only=True)
class CellFlags:
    """Selects cells of the tables, and says where their weights are.

    Attributes:
        table: 3, 4, 5, 6, or demo (default: 3 to 6).
        row: a model, such as base_4m, large_1b or base.
        cell: a data set, such as coco_5k or vqa2, or the full name of a cell, such as 3/base_4m/coco_5k.
        checkpoints: folder of published weights, with the authors' file names.
    """

    table: Annotated[str | None, named("TABLE")] = None
    row: Annotated[str | None, named("ROW")] = None
    cell: Annotated[str | None, named("COLUMN")] = None
    checkpoints: Path | None = None

    @property
    def given(self) -> bool:
        """Whether an option selects cells."""
        return any((self.table, self.row, self.cell))


def tables(*, flags: CellFlags = CellFlags()) -> int:
    """Show the cells of the paper's tables 3 to 6 for X²-VLM: published numbers, config, weights and missing files. With --table,
    --row or --cell, all details of each cell are shown.

    Examples:
        python run.py tables
        python run.py tables --table 3 --row base_4m
        python run.py tables --cell coco_5k --checkpoints ~/weights
    """
    for cell in chosen(flags.table, flags.row, flags.cell):
        ready_cell = ready(cell, flags.checkpoints, ())
        sys.stdout.write(_details_of(ready_cell) if flags.given else _line_of(ready_cell))
    if not flags.given:
        sys.stdout.write("\n--table N, --row ROW or --cell COLUMN shows cells in full; `run.py reproduce` runs them\n")
    return 0


def _line_of(ready_cell: ReadyCell) -> str:
    cell = ready_cell.cell
    split, metrics = next(iter(cell.numbers.items()))
    metric, percent = next(iter(metrics.items()))
    state = "weights and data are here" if not ready_cell.missing else f"missing: {len(ready_cell.missing)}"
    return f"{cell.name:28} {f'{split} {metric}':44} {percent:5.1f}  {state}\n"


def _details_of(ready_cell: ReadyCell) -> str:
    cell = ready_cell.cell
    rows: list[tuple[str, str]] = []
    for split, metrics in cell.numbers.items():
        rows.append(("published", f"{split}: " + ", ".join(f"{name} {value}" for name, value in metrics.items())))
    rows += [("protocol", cell.protocol.strip())]
    rows += [("measured by", cell.server)] if cell.server else []
    rows += [("config", " ".join([cell.config, *cell.overrides])), ("weights", ready_cell.weights or "none")]
    rows += [("run", summary_of(ready_cell.config))]
    rows += [("missing", f"{path} ({', '.join(keys[:2])})") for path, keys in ready_cell.missing.items()]
    rows += [] if ready_cell.missing else [("missing", "nothing")]
    lines = [f"{cell.name}\n"]
    for name, text in rows:
        wrapped = textwrap.wrap(text, WIDTH - 14, break_long_words=False, break_on_hyphens=False) or [""]
        lines += [f"  {name if not index else '':11} {line}\n" for index, line in enumerate(wrapped)]
    return "".join([*lines, "\n"])


def summary_of(config: Any) -> str:
    """Returns a summary of a run: its length, batch size, image size, number of candidates and seed."""
    train, model, evaluation = config.train, config.model, config.evaluation
    length = f"{train.epochs:g} epochs" if train.epochs is not None else f"{train.steps:,} steps"
    parts = [
        length,
        f"{train.global_batch} examples per step" if train.global_batch else "",
        in_words(model.vision.image_size),
    ]
    parts += [f"k = {evaluation.candidates}"] if getattr(evaluation, "candidates", None) else []
    parts += [f"seed {config.seed}"]
    return ", ".join(filter(None, parts))


def title_of(table: str) -> str:
    """Returns the title of the page about a table."""
    return "the demo's table" if table == "demo" else f"table {table} of the paper"
