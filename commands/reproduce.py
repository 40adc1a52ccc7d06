"""``python run.py reproduce``: checks and runs cells of the paper's tables one after another, and writes a receipt for each."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, NamedTuple

from commands.doctor import doctor
from commands.tables import CellFlags, title_of
from launch.placement import Placement
from tasks import ROOT
from tasks.tables import Cell
from tools.reproduce.cells import ReadyCell, chosen, ready
from tools.reproduce.measured import Number, numbers_of, sizes_of, table_of
from tools.reproduce.missing import require
from tools.reproduce.page import read_receipts, write_page
from tools.reproduce.receipt import receipt_of, write_receipt
from tools.reproduce.runs import RunToMake, Seeds, finished, make, run_command
from tools.reproduce.submissions import check_submissions
from utils.commands import FLAGS, argv_of
from utils.errors import UserError
from utils.flags import OutputFolder, Override, WrongValueError, alone_or, positive

OUTPUT = Path("runs/reproduce")

DRAWS = 1000

LARGE_DIFFERENCE = 2.0
"""Difference from the published number, in points, above which a remark is added."""


def _draws(text: str) -> int:
    """Parses a number of draws, and rejects an override that directly follows the option."""
    if "=" in text:
        raise WrongValueError(f"{text!r} is not a number of draws; write --intervals {DRAWS} {text}")
    return positive(text)


@FLAGS
@dataclass(frozen=True, kw_only=True)
class ReproduceFlags:
    """Flags that set how cells are run.

    Attributes:
        evaluate: evaluate the weights as they are, without training.
        seeds: seeds of the runs, one run each (default: the config's seed).
        output: folder of runs and receipts.
        intervals: show the 95% interval of each number over the held-out examples, from this number of bootstrap draws (1000 if
            no number follows the flag); finished runs are evaluated again, but not trained again.
        small: run a version that takes a few seconds, for cells that have one; it shows that the steps work, but does not
            reproduce the number.
        unchecked: skip `run.py doctor` before each training.
    """

    evaluate: bool = False
    seeds: Seeds = None
    output: OutputFolder = OUTPUT
    intervals: Annotated[int | bool, alone_or(_draws, "DRAWS")] = False
    small: bool = False
    unchecked: bool = False

    @property
    def draws(self) -> int:
        """Number of bootstrap draws for the intervals; 0 for no intervals."""
        return DRAWS if self.intervals is True else int(self.intervals)


class _Request(NamedTuple):
    """What the command line requests, apart from the choice of cells."""

    flags: ReproduceFlags
    placement: Placement
    overrides: tuple[str, ...]
    checkpoints: Path | None

    def changes(self, cell: Cell) -> tuple[str, ...]:
        """Returns the overrides that are applied after the cell's overrides."""
        return (*(cell.small if self.flags.small else ()), *self.overrides)


def reproduce(
    *overrides: Override,
    which: CellFlags = CellFlags(),
    flags: ReproduceFlags = ReproduceFlags(),
    placement: Placement = Placement(),
) -> int:
    """Run cells of the paper's tables from the published weights: check, fine-tune, evaluate, and print numbers next to the
    published ones. Repeat the command to resume; nothing is downloaded.

    Args:
        overrides: values that replace the config's, as key=value.

    Examples:
        python run.py reproduce --table 3 --row base_4m --gpus 8
        python run.py reproduce --cell 4/base_4m/nlvr2 --checkpoints ~/weights --gpus 8 --seeds 0,1,2
        python run.py reproduce --table 4 --row base_4m --evaluate --checkpoints ~/fine_tuned
        python run.py reproduce --table demo --intervals

    Returns:
        0 all cells have numbers; 1 some could not be run; 2 the command line is wrong
    """
    placement.check()
    if not which.given:
        raise UserError("choose cells with --table, --row or --cell", remedy="`run.py tables` lists them")
    cells = chosen(which.table, which.row, which.cell)
    request = _Request(flags, placement, overrides, which.checkpoints)
    failed = 0
    for number, cell in enumerate(cells, start=1):
        sys.stdout.write(f"== {cell.name} ({number} of {len(cells)})\n")
        sys.stdout.flush()
        try:
            _reproduce(cell, request)
        except UserError as error:
            failed += 1
            sys.stdout.write(f"not run: {error}\n")
    for table in dict.fromkeys(str(cell.table) for cell in cells):
        if receipts := read_receipts(flags.output, table):
            path = flags.output / f"table_{table}.html"
            write_page(path, title_of(table).capitalize(), receipts)
            sys.stdout.write(f"the table: {path}\n")
    return 1 if failed else 0


def _reproduce(cell: Cell, request: _Request) -> None:
    """Runs a cell with each seed, prints its numbers and writes its receipt.

    Raises:
        UserError: if something is missing, or a run failed.
    """
    flags = request.flags
    ready_cell = ready(cell, request.checkpoints, request.changes(cell), runs=flags.output, evaluate=flags.evaluate)
    require(ready_cell)
    planned = {seed: _planned(ready_cell, seed, request) for seed in _seeds(ready_cell, flags)}
    unfinished = [run for run in planned.values() if finished(run) is None]
    if unfinished and not flags.evaluate and not flags.unchecked:
        _check(ready_cell, unfinished[0], flags.output)
    runs = {seed: make(run) for seed, run in planned.items()}
    folders = [Path(run["folder"]) for run in runs.values()]
    sent = [line for folder in folders for line in check_submissions(folder, ready_cell.config)]
    numbers = numbers_of(cell, folders)
    remarks = [f"measured on {line}" for line in sizes_of(folders[0])] + _remarks(ready_cell, numbers, request)
    receipt = receipt_of(ready_cell, runs, numbers, remarks)
    path = write_receipt(flags.output / ready_cell.folder, receipt, numbers)
    sys.stdout.write(f"\n{table_of(numbers, 'published')}\n")
    sys.stdout.write("".join(f"{line}\n" for line in [*receipt["remarks"], f"the receipt: {path}"]))
    sys.stdout.write("".join(f"to be sent: {line}\n" for line in sent) + "\n")


def _seeds(ready_cell: ReadyCell, flags: ReproduceFlags) -> list[int]:
    return [ready_cell.config.seed if seed is None else seed for seed in flags.seeds or (None,)]


def _planned(ready_cell: ReadyCell, seed: int, request: _Request) -> RunToMake:
    """Returns the run of a cell with one seed."""
    flags, placement = request.flags, request.placement
    folder = flags.output / ready_cell.folder / (f"evaluation-{seed}" if flags.evaluate else f"seed-{seed}")
    if placement.gpus is None and placement.cpu is None:
        placement = replace(placement, cpu=ready_cell.cell.cpu)
    return RunToMake(
        str(ROOT / ready_cell.cell.config),
        folder,
        (*ready_cell.overrides, f"seed={seed}"),
        placement,
        flags.evaluate,
        flags.draws,
        ready_cell.weights,
    )


def _check(ready_cell: ReadyCell, run: RunToMake, output: Path) -> None:
    """Checks a cell with ``run.py doctor``. Checking one run is enough, because the checks do not depend on the seed.

    Raises:
        UserError: if the check finds that the run would not start.
    """
    out = output / ready_cell.folder
    out.mkdir(parents=True, exist_ok=True)
    words = argv_of(doctor, *ready_cell.overrides, config=run.config, output=run.folder, out=out)
    if run_command([sys.executable, str(ROOT / "run.py"), "doctor", *words]) != 0:
        raise UserError(
            "`run.py doctor` refuses this run for the reasons printed above", remedy="fix them, or pass --unchecked"
        )


def _remarks(ready_cell: ReadyCell, numbers: Sequence[Number], request: _Request) -> list[str]:
    """Returns remarks for readers of the numbers."""
    remarks = []
    if request.flags.small or request.overrides:
        changed = " ".join(request.changes(ready_cell.cell))
        remarks.append(f"not the published setting: {changed}")
    differences = [abs(number.difference) for number in numbers if number.difference is not None]
    if not differences and ready_cell.cell.server:
        remarks.append(f"measured by {ready_cell.cell.server}, to which the run's predictions are sent")
    if differences and max(differences) > LARGE_DIFFERENCE:
        remarks.append(f"far from the published numbers: by up to {max(differences):.1f} points")
    if any(number.interval for number in numbers):
        remarks.append(
            "in brackets: 95% bootstrap interval over the held-out examples, which does not include the spread over seeds"
        )
    return remarks
