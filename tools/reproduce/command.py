"""``python run.py reproduce``: run cells of the paper's tables one after another, each checked first, with a receipt."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from utils.launcher import add_placement, check_placement

from tasks.kinds import ROOT
from tasks.tables import Cell
from tools.reproduce.cells import ReadyCell, chosen, ready
from tools.reproduce.measured import Number, numbers_of, sizes_of, table_of
from tools.reproduce.missing import require
from tools.reproduce.page import read_receipts, write_page
from tools.reproduce.receipt import receipt_of, write_receipt
from tools.reproduce.runs import Run, finished, make, parse_seeds, placement_words, run_command
from tools.reproduce.submissions import check_submissions
from tools.tables import add_choice, title_of
from utils.errors import UserError, one_line_errors
from utils.flags import add_overrides, parse, positive

OUTPUT = Path("runs/reproduce")

DRAWS = 1000

FAR = 2.0
"""Points from which on a difference is said to be large."""

EXAMPLES = """examples:
  python run.py reproduce --table 3 --row base_4m --gpus 8
  python run.py reproduce --cell 4/base_4m/nlvr2 --checkpoints ~/weights --gpus 8 --seeds 0,1,2
  python run.py reproduce --table 4 --row base_4m --evaluate --checkpoints ~/fine_tuned
  python run.py reproduce --table demo --intervals

exit status: 0 all cells have numbers; 1 some could not be run; 2 the command line is wrong"""


def arguments_of(argv: Sequence[str]) -> argparse.Namespace:
    """The arguments after ``run.py reproduce``."""
    parser = argparse.ArgumentParser(
        prog="run.py reproduce",
        description="Run cells of the paper's tables from the published weights: check, fine-tune, evaluate, and print numbers "
        "beside the published ones. The same command resumes; nothing is downloaded.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_choice(parser)
    flag = parser.add_argument
    flag("--evaluate", action="store_true", help="do not train: evaluate the weights as they are")
    flag(
        "--seeds", type=parse_seeds, default=(None,), metavar="S,S", help="a run for each seed (default: the config's)"
    )
    flag(
        "--output", type=Path, default=OUTPUT, metavar="DIR", help="folder of runs and receipts (default: %(default)s)"
    )
    flag(
        "--intervals",
        type=_draws,
        nargs="?",
        const=DRAWS,
        default=0,
        metavar="DRAWS",
        help="95 %% interval of each number over the held-out examples, from DRAWS bootstrap draws (without a number: "
        "%(const)s); finished runs are measured again, not trained",
    )
    flag("--small", action="store_true", help="runs of seconds, where a cell has any: shows the way, not the number")
    flag("--unchecked", action="store_true", help="without `run.py doctor` before each training")
    add_placement(parser)
    add_overrides(parser)
    arguments = parse(parser, argv)
    check_placement(parser, arguments)
    if not any((arguments.table, arguments.row, arguments.cell)):
        parser.error("choose cells by --table, --row or --cell; `run.py tables` lists them")
    return arguments


@one_line_errors
def main(argv: Sequence[str]) -> int:
    """Run the cells, and print their numbers; returns the exit status."""
    flags = arguments_of(argv)
    cells = chosen(flags.table, flags.row, flags.cell)
    failed = 0
    for number, cell in enumerate(cells, start=1):
        sys.stdout.write(f"== {cell.name} ({number} of {len(cells)})\n")
        sys.stdout.flush()
        try:
            _reproduce(cell, flags)
        except UserError as error:
            failed += 1
            sys.stdout.write(f"not run: {error}\n")
    for table in dict.fromkeys(str(cell.table) for cell in cells):
        if receipts := read_receipts(flags.output, table):
            path = flags.output / f"table_{table}.html"
            write_page(path, title_of(table).capitalize(), receipts)
            sys.stdout.write(f"the table: {path}\n")
    return 1 if failed else 0


def _reproduce(cell: Cell, flags: argparse.Namespace) -> None:
    """Run a cell with each seed, print its numbers and write its receipt.

    Raises:
        UserError: something is missing, or a run failed.
    """
    more = (*(cell.small if flags.small else ()), *flags.overrides)
    at_hand = ready(cell, flags.checkpoints, more, runs=flags.output, evaluate=flags.evaluate)
    require(at_hand)
    planned = {seed: _planned(at_hand, seed, flags) for seed in _seeds(at_hand, flags)}
    unfinished = [run for run in planned.values() if finished(run) is None]
    if unfinished and not flags.evaluate and not flags.unchecked:
        _check(at_hand, unfinished[0], flags)
    runs = {seed: make(run) for seed, run in planned.items()}
    folders = [Path(run["folder"]) for run in runs.values()]
    sent = [line for folder in folders for line in check_submissions(folder, at_hand.config)]
    numbers = numbers_of(cell, folders)
    remarks = [f"measured on {line}" for line in sizes_of(folders[0])] + _remarks(at_hand, numbers, flags)
    receipt = receipt_of(at_hand, runs, numbers, remarks)
    path = write_receipt(flags.output / at_hand.folder, receipt, numbers)
    sys.stdout.write(f"\n{table_of(numbers, 'published')}\n")
    sys.stdout.write("".join(f"{line}\n" for line in [*receipt["remarks"], f"the receipt: {path}"]))
    sys.stdout.write("".join(f"to be sent: {line}\n" for line in sent) + "\n")


def _seeds(at_hand: ReadyCell, flags: argparse.Namespace) -> list[int]:
    return [at_hand.config.seed if seed is None else seed for seed in flags.seeds]


def _planned(at_hand: ReadyCell, seed: int, flags: argparse.Namespace) -> Run:
    """The run of a cell with one seed."""
    folder = flags.output / at_hand.folder / (f"evaluation-{seed}" if flags.evaluate else f"seed-{seed}")
    words = (*placement_words(flags, at_hand.cell.cpu), "--evaluate" if flags.evaluate else "--resume")
    overrides = (*at_hand.overrides, f"seed={seed}")
    return Run(str(ROOT / at_hand.cell.config), folder, words, overrides, flags.intervals, at_hand.weights)


def _check(at_hand: ReadyCell, run: Run, flags: argparse.Namespace) -> None:
    """Let the doctor see the cell, whose seeds differ in nothing that it looks at.

    Raises:
        UserError: it refuses.
    """
    out = flags.output / at_hand.folder
    out.mkdir(parents=True, exist_ok=True)
    words = ["doctor", "--config", run.config, "--output", str(run.folder), "--out", str(out), *at_hand.overrides]
    if run_command([sys.executable, str(ROOT / "run.py"), *words]) != 0:
        raise UserError("the doctor refuses this run, as printed above; mend it, or give --unchecked")


def _remarks(at_hand: ReadyCell, numbers: Sequence[Number], flags: argparse.Namespace) -> list[str]:
    """Facts that a reader of the numbers has to know."""
    remarks = []
    if flags.small or flags.overrides:
        changed = " ".join((*(at_hand.cell.small if flags.small else ()), *flags.overrides))
        remarks.append(f"not the published setting: {changed}")
    differences = [abs(number.difference) for number in numbers if number.difference is not None]
    if not differences and at_hand.cell.server:
        remarks.append(f"measured by {at_hand.cell.server}, to which the run's predictions are sent")
    if differences and max(differences) > FAR:
        remarks.append(f"far from the published numbers: by up to {max(differences):.1f} points")
    if any(number.interval for number in numbers):
        remarks.append(
            "in brackets: 95 % bootstrap interval over the held-out examples; the spread over seeds comes on top"
        )
    return remarks


def _draws(text: str) -> int:
    """A number of draws, for argparse; an override that follows the bare flag is told apart."""
    if "=" in text:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of draws; write --intervals {DRAWS} {text}")
    return positive(text)
