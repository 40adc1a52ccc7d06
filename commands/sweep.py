"""``python run.py sweep``: runs variants of a config one after another, with several seeds, and prints one table of the results.

Variants are either all combinations of the values of some keys, or named sets of overrides.
"""

from __future__ import annotations

import itertools
import json
import re
import shlex
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

from launch.placement import Placement
from tasks.binding import bind_run
from tools.reproduce.measured import evaluation_of, percents
from tools.reproduce.runs import RunToMake, Seeds, make
from utils.config_files import ConfigError
from utils.errors import UserError
from utils.files import write_text
from utils.flags import File, OutputFolder, Override, named

Grid = list[tuple[str, list[str]]]
"""Keys, each with the values to try."""

Overrides = tuple[str, ...]
"""``key=value`` arguments."""


def sweep(
    *overrides: Override,
    config: File,
    grid: Annotated[tuple[str, ...], named("KEY=V,V")] = (),
    variant: Annotated[tuple[str, ...], named('"NAME: KEY=V"')] = (),
    seeds: Seeds = None,
    output: OutputFolder | None = None,
    placement: Placement = Placement(),
) -> int:
    """Train and evaluate every combination of the given values, or each named variant, one run after another, and print one
    table with a row per variant, which shows the mean and standard deviation over seeds. Pass either --grid or --variant. Repeat
    the command to resume.

    Args:
        overrides: values that replace the config's, as key=value.
        config: YAML file; see configs/.
        grid: a key and the values to try; may be repeated, to try all combinations.
        variant: the name of a row in the table, followed by any number of overrides for its runs; may be repeated.
        seeds: seeds of the runs, one run each per variant (default: the config's seed).
        output: folder of the runs (default: runs/sweep/<config's name>).

    Examples:
        python run.py sweep --config configs/own/retrieval.yaml --grid optim.lr=1e-4,3e-4 --seeds 0,1
        python run.py sweep --config configs/demo/pretrain.yaml --cpu 2 \\
          --variant "all:" --variant "without boxes: loss.l1=0 loss.giou=0" train.steps=300

    Returns:
        0 all variants have numbers; 1 some could not be run; 2 the command line is wrong
    """
    placement.check()
    if bool(grid) == bool(variant):
        raise UserError("pass either --grid key=v,v or --variant 'NAME: key=v'")
    output = output or Path("runs/sweep") / Path(config).stem
    named = list(map(_named, variant)) or combinations(list(map(_axis, grid)))
    variants = dict(named)
    if len({folder_of(name) for name in variants}) < len(named):
        duplicate = next(
            name for name, _ in named if [folder_of(other) for other, _ in named].count(folder_of(name)) > 1
        )
        raise UserError(f"two variants are called {duplicate!r}", remedy="give each a different name")
    _check(config, overrides, variants, placement)
    measured: dict[str, list[dict[str, float]]] = {}
    failed = 0
    chosen_seeds = seeds or (None,)
    for number, (name, changes) in enumerate(variants.items(), start=1):
        sys.stdout.write(f"== {name} ({number} of {len(variants)})\n")
        sys.stdout.flush()
        for seed in chosen_seeds:
            try:
                folder = output / folder_of(name) / ("seed" if seed is None else f"seed-{seed}")
                seed_override = () if seed is None else (f"seed={seed}",)
                run = RunToMake(config, folder, (*overrides, *changes, *seed_override), placement)
                measured.setdefault(name, []).append(_measure(run))
            except UserError as error:
                failed += 1
                sys.stdout.write(f"not run: {error}\n")
    if not any(measured.values()):
        raise UserError("no variant could be run, as printed above", where=f"--config {config}")
    table = table_of(measured, len(chosen_seeds))
    write_text(output / "sweep.md", table)
    write_text(output / "sweep.json", json.dumps(measured, indent=2) + "\n")
    sys.stdout.write(f"\n{table}\nthe table: {output / 'sweep.md'}\n")
    return 1 if failed else 0


def folder_of(name: str) -> str:
    """Returns the name of the folder for a variant's runs, which does not depend on the position of the variant in the list."""
    return re.sub(r"[^\w.=]+", "-", name).strip("-.") or "variant"


def combinations(grid: Grid) -> list[tuple[str, Overrides]]:
    """Returns every combination of the values with its name in the table. The last key changes fastest."""
    variants = [
        tuple(f"{key}={value}" for (key, _), value in zip(grid, values, strict=True))
        for values in itertools.product(*(values for _, values in grid))
    ]
    return [(" ".join(variant), variant) for variant in variants]


def _check(config: str, common: Overrides, variants: Mapping[str, Overrides], placement: Placement) -> None:
    """Reads and plans the config of every variant. A sweep takes hours, so the mistakes of all variants are reported before the
    first run.

    Raises:
        UserError: if a config is wrong.
    """
    findings: dict[str, UserError] = {}
    for variant in variants.values():
        try:
            bind_run(config, [*common, *variant]).config.plan(placement.cpu or placement.gpus or 1)
        except ConfigError as error:
            findings |= {str(finding): finding for finding in error.findings}
        except UserError as error:
            findings[str(error)] = error
    if findings:
        raise ConfigError(list(findings.values()))


def _measure(run: RunToMake) -> dict[str, float]:
    """Trains and evaluates one variant with one seed, and returns its metrics in percent.

    Raises:
        UserError: if the run failed.
    """
    make(run)
    splits = {split: percents(evaluation) for split, evaluation in evaluation_of(run.folder).items()}
    several = len(splits) > 1
    return {
        f"{split} {metric}" if several else metric: value
        for split, metrics in splits.items()
        for metric, value in metrics.items()
    }


def table_of(measured: Mapping[str, Sequence[Mapping[str, float]]], seeds: int) -> str:
    """Returns a Markdown table with a row per variant and a column per metric. Entries are means and standard deviations over
    seeds. If an entry has fewer than ``seeds`` runs, it also states their number."""
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
    """Parses "key=v,v". Commas inside brackets are part of a value."""
    key, sign, values = text.partition("=")
    parts, depth = [""], 0
    for character in values:
        depth += (character in "[{") - (character in "]}")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    if not sign or not key or "" in parts:
        raise UserError(f"{text!r} is not of the form key=value,value", where="--grid")
    return key, parts


def _named(text: str) -> tuple[str, Overrides]:
    """Parses "NAME: key=value key=value"."""
    name, colon, overrides = text.partition(":")
    words = tuple(shlex.split(overrides))
    if not colon or not name.strip() or not all("=" in word for word in words):
        raise UserError(f"{text!r} is not of the form 'NAME: key=value key=value'", where="--variant")
    return name.strip(), words
