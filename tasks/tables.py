"""The cells of the paper's tables 3 to 6, as ``configs/tables.yaml`` has them: numbers, config, overrides, protocol.

A config names its cell in ``evaluation.published``; the run shows the cell's numbers beside the measured ones.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from pydantic import Field

from tasks.kinds import ROOT
from utils.config import Config, bind
from utils.config_files import read_yaml

TABLES = ROOT / "configs/tables.yaml"
"""The one home of the published numbers."""

DEMO = ROOT / "configs/tables_demo.yaml"
"""The table of the demo, as README and docs/demo_results.md have it, in the same form."""

Numbers = dict[str, dict[str, float]]
"""{split: {metric: percent}}."""


class CellConfig(Config):
    """A row of a column: what was published, and the run that claims to reproduce it."""

    numbers: Numbers = Field(min_length=1, description="published numbers, {split: {metric: percent}}")
    config: str = Field(description="config of the run, relative to the project's folder")
    overrides: list[str] = Field([], description="`key=value` arguments of the run")
    checkpoint: str | None = Field(
        description="weights that the run starts from: a file; `cell NAME`, the run of another cell; null: none"
    )
    cpu: int | None = Field(
        None, ge=1, description="processes on the CPU, unless the command places the run; null: as it places any"
    )
    small: list[str] = Field([], description="more `key=value` arguments, for a run of seconds that shows the way")


class ColumnConfig(Config):
    """A column of a table: a data set, measured in one way. ``rows``: by the paper's model."""

    table: Literal[3, 4, 5, 6, "demo"] = Field(description="of the paper, or the demo's own")
    protocol: str = Field(description="what is trained on, what selects the weights, what is measured")
    server: str | None = Field(None, description="the service that measures the numbers; null: the run does")
    rows: dict[str, CellConfig] = Field(min_length=1, description="cells, by model: base_4m, large_1b, base, …")


class TablesConfig(Config):
    """The file: columns by name."""

    columns: dict[str, ColumnConfig] = Field(min_length=1, description="columns of all tables, by name")


@dataclass(frozen=True)
class Cell:
    """A cell with what its column says of it; fields as of :class:`CellConfig` and :class:`ColumnConfig`."""

    table: int | str
    row: str
    column: str
    numbers: Numbers
    config: str
    overrides: tuple[str, ...]
    checkpoint: str | None
    protocol: str
    server: str | None
    cpu: int | None = None
    small: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The name in ``evaluation.published``, such as ``3/base_4m/coco_5k``."""
        return f"{self.table}/{self.row}/{self.column}"


@cache
def read_tables(path: Path = TABLES) -> dict[str, Cell]:
    """All cells by name, in the order of the file.

    Raises:
        ConfigError: if the file cannot be read or does not bind.
    """
    tables = bind(read_yaml(path), TablesConfig, source=str(path))
    cells = (
        Cell(
            column.table,
            row,
            name,
            cell.numbers,
            cell.config,
            tuple(cell.overrides),
            cell.checkpoint,
            column.protocol,
            column.server,
            cell.cpu,
            tuple(cell.small),
        )
        for name, column in tables.columns.items()
        for row, cell in column.rows.items()
    )
    return {cell.name: cell for cell in cells}


def check_name(name: str) -> str:
    """The name, if there is such a cell.

    Raises:
        ValueError: if there is none, with the nearest name: a validator's error, to which the config system adds the place.
    """
    cells = read_tables()
    if name not in cells:
        close = difflib.get_close_matches(name, cells, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]!r}?" if close else "cells are named TABLE/ROW/COLUMN; null shows no numbers"
        raise ValueError(f"no such cell in {TABLES}; {hint}")
    return name
