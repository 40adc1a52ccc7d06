"""``run.py report``: writes an HTML page about one or more runs."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

from engine.run_files import REPORT_FILE
from utils.errors import UserError
from utils.files import expanded, write_text
from utils.flags import OutputFile, read_by, whole_number

MAX_RUNS = 40
MAX_EXAMPLES = 200


def report(
    runs: list[str],
    /,
    *,
    output: OutputFile | None = None,
    examples: Annotated[int, read_by(whole_number(0, MAX_EXAMPLES))] = 24,
    wandb: bool = False,
) -> int:
    """Write an HTML page about a run, finished or not: metrics, curves, predictions with failures first, broken records,
    throughput, config. Given several runs, compare them side by side, with a verdict on which is best.

    The page is a single file and works offline. Runs whose configs differ only in their seed are shown as one, with their mean
    and spread. Run the command in the directory in which the run was started, because image paths in its config are relative to
    that directory.

    Args:
        runs: folder of each run (its --output).
        output: the page to write (default: report.html in the folder of the run or, for several runs, in the current directory).
        examples: maximum number of predictions shown per split; from 0 to 200.
        wandb: also upload the page to Weights & Biases; requires a single run that was trained with train.wandb.

    Examples:
        python run.py report runs/demo/grounding
        python run.py report runs/ablation/*/seed-* --output variants.html
        python run.py report runs/big --examples 0                       without predictions: fast, and needs no data
    """
    if len(runs) > MAX_RUNS:
        raise UserError(f"{len(runs)} runs are more than a page can show", remedy=f"use at most {MAX_RUNS}")
    if wandb and len(runs) > 1:
        raise UserError(
            f"a page about {len(runs)} runs belongs to none of them", where="--wandb", remedy="pass a single run"
        )
    if output is None:
        output = expanded(runs[0]) / REPORT_FILE if len(runs) == 1 and expanded(runs[0]).is_dir() else Path(REPORT_FILE)
    output = expanded(output)
    if output.is_dir():
        raise UserError(
            "is a folder", where=f"--output {output}", remedy=f"pass a file, such as {output / REPORT_FILE}"
        )
    if output.suffix not in (".html", ".htm"):
        raise UserError(
            "the page is an HTML file", where=f"--output {output}", remedy="use a name that ends with .html"
        )
    if not output.parent.is_dir():
        raise UserError(
            f"the folder {output.parent} does not exist",
            where=f"--output {output}",
            remedy="create it, or use another file",
        )
    # Imported here, so that --help and errors in the command line do not wait for torch.
    from tools.report.page import page_of
    from tools.runs.reading import read_runs

    read = read_runs(runs)
    with warnings.catch_warnings(), _quiet():
        page = page_of(read, examples)
    write_text(output, page)
    for run in read:
        count = len(run.remarks)
        remarks = f"; {count} remark{'s' if count > 1 else ''}, see the page" if count else ""
        sys.stdout.write(f"{run.name}: {run.state.text}{remarks}\n")
    sys.stdout.write(f"{output}: {len(page.encode()) / 1e6:.1f} MB\n")
    if wandb:
        from engine.trackers import send_report

        send_report(read[0].folder, output)
        sys.stdout.write("the page was sent to W&B\n")
    return 0


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences messages about images and annotations: the page lists what cannot be shown."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
