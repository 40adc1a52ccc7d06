"""Gain from pre-training the small real model: ``python -m benchmarks.real_gain``, after ``make real``.

Retrieval, grounding and captioning are fine-tuned at equal steps from the pre-trained model, from its encoders alone, and from
random weights. From random weights everything trains, at the rate that random parameters have in the other runs. ``run.py sweep``
makes the runs and the tables of all metrics; the last table has the main ones.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from tools import sweep
from utils.config_files import peek
from utils.errors import one_line_errors

CONFIGS = {task: Path(f"configs/real/{task}.yaml") for task in ("retrieval", "grounding", "captioning")}
HEADLINES = {
    "retrieval": ("mean of splits image to text R@1 (cosine)", "mean of splits text to image R@1 (cosine)"),
    "grounding": ("IoU >= 0.5",),
    "captioning": ("CIDEr", "ROUGE-L"),
}
PRETRAINING = Path("configs/real/pretrain.yaml")


def starts(config: Path) -> dict[str, list[str]]:
    """The overrides of each start."""
    encoders = [f"init.{part}={weights}" for part, weights in peek(PRETRAINING, [], "init").items()]
    optim = peek(config, [], "optim")
    rate = optim["lr"] * optim["lr_mult"]
    return {
        "pre-trained": [],
        "encoders alone": ["init.checkpoint=null", *encoders],
        "from scratch": ["init.checkpoint=null", "optim.freeze=null", f"optim.lr={rate}", "optim.lr_mult=1"],
    }


def headlines(folder: Path, task: str) -> str:
    """A Markdown table of a task's main metrics, from what the sweep in ``folder`` measured."""
    measured = json.loads((folder / "sweep.json").read_text(encoding="utf-8"))
    chosen = {
        name: [{metric: run[metric] for metric in HEADLINES[task] if metric in run} for run in runs]
        for name, runs in measured.items()
    }
    return sweep.table_of(chosen, max(map(len, chosen.values()))).replace("| |", f"| {task} |", 1)


@one_line_errors
def main(argv: Sequence[str] | None = None) -> int:
    """Make the runs that are missing, and print the tables; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=CONFIGS, action="append", help="may be repeated; default: all three")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--cpu", default="2", help="processes of a run")
    parser.add_argument("--output", type=Path, default=Path("runs/real/gain"))
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of all runs")
    flags = parser.parse_args(argv)
    status, tables = 0, []
    for task in flags.task or CONFIGS:
        variants: list[str] = []
        for name, overrides in starts(CONFIGS[task]).items():
            variants += ["--variant", " ".join([f"{name}:", *overrides])]
        placed = ["--seeds", flags.seeds, "--cpu", flags.cpu, "--output", str(flags.output / task)]
        code = sweep.main(["--config", str(CONFIGS[task]), *variants, *placed, *flags.overrides])
        status = max(status, code)
        if code < 2:  # else there is no table
            tables.append(headlines(flags.output / task, task))
    sys.stdout.write("\n".join(["", *tables]))
    return status


if __name__ == "__main__":
    raise SystemExit(main())
