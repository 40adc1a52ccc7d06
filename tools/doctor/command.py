"""The command line of ``run.py doctor``."""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tasks.job import default_output
from tasks.kinds import choose
from tools.doctor.data import check_data
from tools.doctor.files import check_files
from tools.doctor.findings import Report
from tools.doctor.first_step import FILE, check_first_step
from tools.doctor.machine import check_machine
from tools.doctor.memory import check_disk, check_memory
from tools.doctor.subject import Subject
from tools.doctor.weights import check_weights
from utils.config import load_config
from utils.distributed import process_group
from utils.errors import one_line_errors
from utils.flags import add_config, add_output, add_overrides, add_task, parse, positive

EXAMPLES = """examples:
  python run.py doctor --config configs/demo/retrieval.yaml
  python run.py doctor --config configs/own/grounding.yaml data.train.annotations=my/regions.jsonl
  python run.py doctor --config configs/pretrain/base_4m.yaml --gpus 8
  python run.py doctor --task examples/entailment

exit status: 0 fine, or warnings; 1 a run would be refused; 2 the config or the command line is wrong"""


def arguments_of(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the arguments after ``run.py doctor``."""
    parser = argparse.ArgumentParser(
        prog="run.py doctor",
        description="Check a run before it starts: missing files, versions, a sample of the records, weights, memory, disk, and "
        "one real step of each stream on a tiny batch. All findings are reported at once, each with a remedy, in half a minute.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    flag = parser.add_argument
    add_config(parser)
    add_task(parser)
    flag(
        "--gpus", type=positive, default=1, metavar="N", help="GPUs, or processes, of the run on all nodes (default: 1)"
    )
    add_output(parser)
    flag("--out", default=".", metavar="DIR", help=f"folder for {FILE} (default: the working directory)")
    add_overrides(parser)
    return parse(parser, argv)


@one_line_errors
def main(argv: Sequence[str]) -> int:
    """Print the report."""
    arguments = arguments_of(argv)
    started = time.perf_counter()
    logging.getLogger().addHandler(logging.NullHandler())  # the report says what would be logged
    choice = choose(arguments.config, arguments.overrides, arguments.task)
    schema, task = choice.load()
    config = load_config(choice.config, arguments.overrides, schema)
    output = Path(arguments.output) if arguments.output else default_output(choice)

    def write(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    write(f"{choice.config}: {choice.source.name}\n")
    with process_group() as device:
        subject = Subject(choice, config, task, arguments.gpus, output, device)
        report = Report(write)
        check_machine(subject, report)
        check_files(subject, report)
        check_weights(subject, report)
        check_data(subject, report)
        check_memory(subject, report)
        check_disk(subject, report)
        check_first_step(subject, report, Path(arguments.out))
        return report.end(time.perf_counter() - started)
