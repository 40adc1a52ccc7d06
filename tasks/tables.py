"""The cells of tables 3 to 6 in the paper, from ``configs/tables.yaml``: numbers, config, overrides and protocol.

A config names its cell in ``evaluation.published``, and the run shows the cell's numbers next to the measured numbers.
"""

from __future__ import annotations

import difflib
from functools import cache
from pathlib import Path
from typing import Literal

from pydantic import Field

from tasks import ROOT
from utils.config import Config, bind
from utils.config_files import read_yaml

TABLES = ROOT / "configs/tables.yaml"
"""The only file that contains the published numbers."""

DEMO = ROOT / "configs/tables_demo.yaml"
"""The results of the demo, in the same format. docs/demo.md also shows them."""

Numbers = dict[str, dict[str, float]]
"""{split: {metric: percent}}."""


class CellConfig(Config):
    """A cell: the published numbers, and the run that should reproduce them."""

    numbers: Numbers = Field(min_length=1, description="published numbers, {split: {metric: percent}}")
    config: str = Field(description="config of the run, relative to the project's folder")
    overrides: list[str] = Field([], description="`key=value` arguments of the run")
    checkpoint: str | None = Field(
        description="weights that the run starts from: a file, or `cell NAME` for the run of another cell; null: none"
    )
    cpu: int | None = Field(
        None,
        ge=1,
        description="number of processes on the CPU, unless the command sets the placement; null: the default",
    )
    small: list[str] = Field(
        [], description="additional `key=value` arguments for a demonstration run of a few seconds"
    )


class ColumnConfig(Config):
    """A column of a table: a data set measured with one protocol."""

    table: Literal[3, 4, 5, 6, "demo"] = Field(description="table of the paper, or the demo's table")
    protocol: str = Field(description="training data, how the weights are selected, and what is measured")
    server: str | None = Field(
        None, description="evaluation service that measures the numbers; null: the run measures them"
    )
    rows: dict[str, CellConfig] = Field(min_length=1, description="cells by model: base_4m, large_1b, base, …")


class TablesConfig(Config):
    """The complete file, with columns by name."""

    columns: dict[str, ColumnConfig] = Field(min_length=1, description="columns of all tables, by name")


class Cell(CellConfig):
    """A cell combined with its column, whose fields :class:`ColumnConfig` describes."""

    table: int | str
    row: str
    column: str
    protocol: str
    server: str | None

    @property
    def name(self) -> str:
        """The name in ``evaluation.published``, such as ``3/base_4m/coco_5k``."""
        return f"{self.table}/{self.row}/{self.column}"


@cache
def read_tables(path: Path = TABLES) -> dict[str, Cell]:
    """Reads all cells, keyed by name, in the order of the file.

    Raises:
        ConfigError: if the file cannot be read or is invalid.
    """
    tables = bind(read_yaml(path), TablesConfig, source=str(path))
    cells = (
        Cell(**dict(cell), table=column.table, row=row, column=name, protocol=column.protocol, server=column.server)
        for name, column in tables.columns.items()
        for row, cell in column.rows.items()
    )
    return {cell.name: cell for cell in cells}


def check_name(name: str) -> str:
    """Returns the name if the cell exists.

    Raises:
        ValueError: if the cell does not exist; the message suggests the closest name. The config system adds the location.
    """
    cells = read_tables()
    if name not in cells:
        close = difflib.get_close_matches(name, cells, n=1, cutoff=0.5)
        hint = (
            f"did you mean {close[0]!r}?"
            if close
            else "the names of cells have the form TABLE/ROW/COLUMN; null shows no numbers"
        )
        raise ValueError(f"no such cell in {TABLES}; {hint}")
    return name
