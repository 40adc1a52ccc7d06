"""``python run.py sweep``: variants of a config one after another, with seeds, and one table of what they measured.

Variants are either all combinations of the values of some keys, or named sets of overrides.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import shlex
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from utils.launcher import add_placement, check_placement

from tasks.kinds import choose
from tools.reproduce.measured import read_evaluation
from tools.reproduce.runs import Run, make, parse_seeds, placement_words
from utils.config import load_config
from utils.errors import UserError, one_line_errors
from utils.files import write_text
from utils.flags import add_config, add_overrides, parse

EXAMPLES = """examples:
  python run.py sweep --config configs/own/retrieval.yaml --grid optim.lr=1e-4,3e-4 --seeds 0,1
  python run.py sweep --config configs/demo/pretrain.yaml --cpu 2 \\
    --variant "all:" --variant "without boxes: loss.l1=0 loss.giou=0" train.steps=300

exit status: 0 all variants have numbers; 1 some could not be run; 2 the command line is wrong"""

Grid = list[tuple[str, list[str]]]
"""Keys, and the values that each takes in turn."""

Overrides = tuple[str, ...]
"""``key=value`` arguments."""


def arguments_of(argv: Sequence[str]) -> argparse.Namespace:
    """The arguments after ``run.py sweep``."""
    parser = argparse.ArgumentParser(
        prog="run.py sweep",
        description="Train and evaluate every combination of the given values, or each named variant, one run after another, and "
        "print one table: a row a variant, with the mean over seeds and its standard deviation. The same command resumes.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_config(parser, required=True)
    flag = parser.add_argument
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--grid", type=_axis, action="append", metavar="key=v,v", help="values of a key; may be repeated")
    what.add_argument(
        "--variant",
        type=_named,
        action="append",
        metavar='"NAME: key=v …"',
        help="a row of the table, and the overrides of its runs, which may be none; may be repeated",
    )
    flag(
        "--seeds", type=parse_seeds, default=(None,), metavar="S,S", help="a run for each seed (default: the config's)"
    )
    flag("--output", type=Path, metavar="DIR", help="folder of the runs (default: runs/sweep/<config's name>)")
    add_placement(parser)
    add_overrides(parser)
    arguments = parse(parser, argv)
    check_placement(parser, arguments)
    arguments.output = arguments.output or Path("runs/sweep") / Path(arguments.config).stem
    return arguments


@one_line_errors
def main(argv: Sequence[str]) -> int:
    """Run the variants, and print and write their table; returns the exit status."""
    flags = arguments_of(argv)
    named = flags.variant or combinations(flags.grid)
    variants = dict(named)
    if len({folder_of(name) for name in variants}) < len(named):
        twice = next(name for name, _ in named if [folder_of(other) for other, _ in named].count(folder_of(name)) > 1)
        raise UserError(f"two variants are called {twice!r}; give each a name of its own")
    _check(flags, variants)
    measured: dict[str, list[dict[str, float]]] = {}
    failed = 0
    for number, (name, variant) in enumerate(variants.items(), start=1):
        sys.stdout.write(f"== {name} ({number} of {len(variants)})\n")
        sys.stdout.flush()
        for seed in flags.seeds:
            try:
                measured.setdefault(name, []).append(_measure(flags, name, variant, seed))
            except UserError as error:
                failed += 1
                sys.stdout.write(f"not run: {error}\n")
    if not any(measured.values()):
        raise UserError(f"--config {flags.config}: no variant could be run, as printed above")
    table = table_of(measured, len(flags.seeds))
    write_text(flags.output / "sweep.md", table)
    write_text(flags.output / "sweep.json", json.dumps(measured, indent=2) + "\n")
    sys.stdout.write(f"\n{table}\nthe table: {flags.output / 'sweep.md'}\n")
    return 1 if failed else 0


def folder_of(name: str) -> str:
    """The folder of a variant's runs, by its name: the same wherever it stands among the variants."""
    return re.sub(r"[^\w.=]+", "-", name).strip("-.") or "variant"


def combinations(grid: Grid) -> list[tuple[str, Overrides]]:
    """Every combination of the values, with the name that it has in the table; the last key changes fastest."""
    variants = [
        tuple(f"{key}={value}" for (key, _), value in zip(grid, values, strict=True))
        for values in itertools.product(*(values for _, values in grid))
    ]
    return [(" ".join(variant), variant) for variant in variants]


def _check(flags: argparse.Namespace, variants: Mapping[str, Overrides]) -> None:
    """Read the config of every variant: a sweep takes hours, and a mistake in its last value is told before the first run.

    Raises:
        UserError: one is wrong.
    """
    for variant in variants.values():
        overrides = [*flags.overrides, *variant]
        choice = choose(flags.config, overrides, None)
        load_config(choice.config, overrides, choice.load().config)


def _measure(flags: argparse.Namespace, name: str, variant: Overrides, seed: int | None) -> dict[str, float]:
    """Train and evaluate one variant with one seed; returns its metrics in percent.

    Raises:
        UserError: the run failed.
    """
    folder = flags.output / folder_of(name) / ("seed" if seed is None else f"seed-{seed}")
    overrides = (*flags.overrides, *variant, *(() if seed is None else (f"seed={seed}",)))
    make(Run(flags.config, folder, (*placement_words(flags), "--resume"), overrides))
    splits = read_evaluation(folder)
    several = len(splits) > 1
    return {
        f"{split} {metric}" if several else metric: value
        for split, metrics in splits.items()
        for metric, value in metrics.items()
    }


def table_of(measured: Mapping[str, Sequence[Mapping[str, float]]], seeds: int) -> str:
    """A table in Markdown: a row a variant, a column a metric, each the mean over seeds and its standard deviation. An entry of
    fewer than ``seeds`` runs says of how many."""
    metrics = list(dict.fromkeys(metric for runs in measured.values() for run in runs for metric in run))
    lines = [f"| | {' | '.join(metrics)} |", f"|---|{'---|' * len(metrics)}"]
    for name, runs in measured.items():
        entries = [_entry([run[metric] for run in runs if metric in run], seeds) for metric in metrics]
        lines.append(f"| {name} | {' | '.join(entries)} |")
    return "\n".join(lines) + "\n"


def _entry(values: Sequence[float], seeds: int) -> str:
    if not values:
        return "not measured"
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    few = f" ({len(values)} of {seeds} seeds)" if len(values) < seeds else ""
    return f"{statistics.fmean(values):.1f}{spread}{few}"


def _axis(text: str) -> tuple[str, list[str]]:
    """ "key=v,v" for argparse; a comma inside brackets belongs to its value."""
    key, sign, values = text.partition("=")
    parts, depth = [""], 0
    for character in values:
        depth += (character in "[{") - (character in "]}")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    if not sign or not key or "" in parts:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form key=value,value")
    return key, parts


def _named(text: str) -> tuple[str, Overrides]:
    """ "NAME: key=value key=value" for argparse."""
    name, colon, overrides = text.partition(":")
    words = tuple(shlex.split(overrides))
    if not colon or not name.strip() or not all("=" in word for word in words):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form 'NAME: key=value key=value'")
    return name.strip(), words
