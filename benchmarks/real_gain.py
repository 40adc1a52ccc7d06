"""Gain from pre-training the emoji and clip art model: ``python -m benchmarks.real_gain``, after ``make real``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

from commands.sweep import sweep, table_of
from launch.placement import Placement
from tools.reproduce.runs import Seeds
from utils.commands import call
from utils.config_files import read_config
from utils.errors import one_line_errors
from utils.flags import Override, Positive, one_of, read_by

CONFIGS = {task: Path(f"configs/real/{task}.yaml") for task in ("retrieval", "grounding", "captioning")}
HEADLINES = {
    "retrieval": ("mean of splits image to text R@1 (cosine)", "mean of splits text to image R@1 (cosine)"),
    "grounding": ("IoU >= 0.5",),
    "captioning": ("CIDEr", "ROUGE-L"),
}
PRETRAINING = Path("configs/real/pretrain.yaml")


def initialisations(config: Path) -> dict[str, list[str]]:
    """Returns the overrides of each initialisation."""
    encoders = [f"init.{part}={weights}" for part, weights in read_config(PRETRAINING).values["init"].items()]
    optim = read_config(config).values["optim"]
    rate = optim["lr"] * optim["lr_mult"]
    return {
        "pre-trained": [],
        "encoders alone": ["init.checkpoint=null", *encoders],
        "from scratch": ["init.checkpoint=null", "optim.freeze=null", f"optim.lr={rate}", "optim.lr_mult=1"],
    }


def headlines(folder: Path, task: str) -> str:
    """Returns a Markdown table of a task's main metrics, from the results of the sweep in ``folder``."""
    measured = json.loads((folder / "sweep.json").read_text(encoding="utf-8"))
    chosen = {
        name: [{metric: run[metric] for metric in HEADLINES[task] if metric in run} for run in runs]
        for name, runs in measured.items()
    }
    return table_of(chosen, max(map(len, chosen.values()))).replace("| |", f"| {task} |", 1)


def main(
    *overrides: Override,
    task_: tuple[Annotated[str, read_by(one_of(list(CONFIGS)))], ...] = (),
    seeds: Seeds = (0, 1, 2),
    cpu: Positive = 2,
    output: Path = Path("runs/real/gain"),
) -> int:
    """Gain from pre-training the emoji and clip art model; run make real first.

    Models for retrieval, grounding and captioning are fine-tuned for the same number of steps from the pre-trained model, from
    only its initial encoders, and from random weights. From random weights, all parameters train, at the learning rate that
    random parameters have in the other runs. run.py sweep starts the runs and prints tables of all metrics; the last table has
    the main metrics.

    Args:
        task_: a task to run; may be repeated (default: all three).
        seeds: seeds of the runs.
        cpu: number of processes per run.
        output: folder of the runs.
        overrides: config values to override in all runs.

    Examples:
        python -m benchmarks.real_gain
    """
    status, tables = 0, []
    for task in task_ or CONFIGS:
        code = one_line_errors(sweep)(
            *overrides,
            config=str(CONFIGS[task]),
            variant=tuple(" ".join([f"{name}:", *changes]) for name, changes in initialisations(CONFIGS[task]).items()),
            seeds=seeds,
            output=output / task,
            placement=Placement(cpu=cpu),
        )
        status = max(status, code)
        if code < 2:  # the sweep wrote a table
            tables.append(headlines(output / task, task))
    sys.stdout.write("\n".join(["", *tables]))
    return status


if __name__ == "__main__":
    sys.exit(call(main, sys.argv[1:], "python -m benchmarks.real_gain"))
