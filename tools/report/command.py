"""The command line of ``run.py report``."""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from utils.errors import UserError, one_line_errors
from utils.files import expanded, write_text

EXAMPLES = """examples:
  python run.py report runs/demo/grounding
  python run.py report runs/ablation/*/seed-0 --output variants.html
  python run.py report runs/big --examples 0                       no predictions: quick, and no data are needed

The page needs no other file and no network. Run the command in the directory in which the run was started: from there, its
config names the images of predictions."""

MOST_RUNS = 40
MOST_EXAMPLES = 200


def arguments_of(argv: Sequence[str]) -> argparse.Namespace:
    """The arguments after ``run.py report``."""
    parser = argparse.ArgumentParser(
        prog="run.py report",
        description="Write one HTML page of a run, finished or not: metrics, curves, predictions with failures first, broken "
        "records, throughput, config; or of several runs, side by side.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run, its --output")
    parser.add_argument(
        "--output", type=Path, default=Path("report.html"), metavar="FILE", help="(default: report.html)"
    )
    parser.add_argument(
        "--examples", type=_examples, default=24, metavar="N", help="predictions of each split, at most (default: 24)"
    )
    arguments = parser.parse_args(argv)
    arguments.output = expanded(arguments.output)
    return arguments


@one_line_errors
def main(argv: Sequence[str]) -> int:
    """Write the page; exit status 2 for a mistake of the user."""
    arguments = arguments_of(argv)
    output: Path = arguments.output
    if len(arguments.runs) > MOST_RUNS:
        raise UserError(f"{len(arguments.runs)} runs are more than a page can show; give at most {MOST_RUNS}")
    if output.is_dir():
        raise UserError(f"--output {output}: is a folder; give a file, such as {output / 'report.html'}")
    if not output.parent.is_dir():
        raise UserError(f"--output {output}: there is no folder {output.parent}; make it, or give another file")
    # Imported here, so that --help and mistakes in the command line do not wait for torch.
    from tools.report.page import page_of
    from tools.runs.reading import read_runs

    runs = read_runs(arguments.runs)
    with warnings.catch_warnings(), _quiet():
        page = page_of(runs, arguments.examples)
    write_text(output, page)
    for run in runs:
        count = len(run.remarks)
        remarks = f"; {count} remark{'s' if count > 1 else ''}, see the page" if count else ""
        sys.stdout.write(f"{run.name}: {run.state.text}{remarks}\n")
    sys.stdout.write(f"{output}: {len(page.encode()) / 1e6:.1f} MB\n")
    return 0


@contextmanager
def _quiet() -> Iterator[None]:
    """No messages about images and annotations on the screen: the page tells of those that cannot be shown."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def _examples(text: str) -> int:
    """A number of examples for argparse."""
    if not text.isdigit() or int(text) > MOST_EXAMPLES:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 0 to {MOST_EXAMPLES}")
    return int(text)
