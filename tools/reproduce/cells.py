"""The cells that a command line selects, each with its config, its weights and a list of missing files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.run_files import EVALUATION_FILE
from tasks import ROOT
from tasks.binding import bind_run
from tasks.tables import DEMO, Cell, read_tables
from utils.errors import UserError
from utils.flags import nearest, unknown
from utils.inputs import missing_inputs

OTHER_CELL = "cell "
"""Prefix of a ``checkpoint`` value that refers to another cell's run."""


@dataclass(frozen=True)
class ReadyCell:
    """A cell and the inputs of its run.

    Attributes:
        weights: the file or the run's folder that the run starts from, or None for random weights.
        overrides: all overrides of the run.
        missing: paths that do not exist, each with the config keys that name it.
    """

    cell: Cell
    config: Any
    weights: str | None
    overrides: tuple[str, ...]
    missing: dict[str, list[str]]

    @property
    def folder(self) -> str:
        """Name of the folder that contains the cell's runs."""
        return folder_of(self.cell.name)


def folder_of(name: str) -> str:
    """Returns the name of the folder that contains a cell's runs, given the cell's name."""
    return name.replace("/", "-")


def chosen(table: str | None, row: str | None, column: str | None) -> list[Cell]:
    """Returns the requested cells. An argument that is None does not restrict the selection.

    Raises:
        UserError: if the cell does not exist; the message lists the known names.
    """
    cells = read_tables(DEMO) if table == "demo" else read_tables()
    if column is not None and "/" in column:
        cells = {**read_tables(), **read_tables(DEMO)}
    found = [
        cell
        for cell in cells.values()
        if table in (None, str(cell.table)) and row in (None, cell.row) and column in (None, cell.column, cell.name)
    ]
    if not found:
        known = {
            "--table": sorted({str(cell.table) for cell in cells.values()} | {"demo"}),
            "--row": list(dict.fromkeys(cell.row for cell in cells.values())),
            "--cell": list(dict.fromkeys(cell.column for cell in cells.values())),
        }
        listed = "; ".join(f"{flag}: {', '.join(names)}" for flag, names in known.items())
        named = {**known, "--cell": [*known["--cell"], *cells]}
        for flag, value in zip(named, (table, row, column), strict=True):
            if value and value not in named[flag] and nearest(value, named[flag]):
                raise UserError(f"{unknown(value, named[flag])}", where=flag)
        requested = " ".join(
            f"{flag} {value}" for flag, value in zip(known, (table, row, column), strict=True) if value
        )
        raise UserError("no such cell", where=requested, remedy=f"known are {listed}")
    return found


def ready(
    cell: Cell, checkpoints: Path | None, more: tuple[str, ...], *, runs: Path | None = None, evaluate: bool = False
) -> ReadyCell:
    """Returns a cell with the inputs that its run needs, and the missing inputs.

    Args:
        cell: the cell.
        checkpoints: folder of published weights; if None, the cell's default.
        more: overrides that are applied after the cell's overrides.
        runs: folder that contains the runs of other cells.
        evaluate: whether the run only evaluates, so that it needs no training data.
    """
    weights = cell.checkpoint
    if weights is not None and weights.startswith(OTHER_CELL):
        weights = str((runs or Path("runs/reproduce")) / folder_of(weights.removeprefix(OTHER_CELL)) / "seed-0")
    elif weights is not None and checkpoints is not None:
        weights = str(checkpoints.expanduser() / Path(weights).name)
    start = () if weights is None else (f"init.checkpoint={weights}",)
    overrides = (*cell.overrides, *start, *more)
    config: Any = bind_run(ROOT / cell.config, list(overrides)).config
    missing = missing_inputs(config, ("data",) if evaluate else ())
    # An interrupted run of another cell also has weights, but they are only partly trained.
    of_a_cell = (cell.checkpoint or "").startswith(OTHER_CELL)
    if weights is not None and of_a_cell and not (Path(weights) / EVALUATION_FILE).is_file():
        missing.setdefault(weights, ["init.checkpoint"])
    return ReadyCell(cell, config, weights, overrides, missing)
