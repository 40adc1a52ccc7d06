"""Effect of hard negative texts in the demo: ``python -m benchmarks.composition``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np

from engine.run_files import EVALUATION_FILE
from utils.commands import call
from utils.errors import one_line_errors
from utils.flags import SEVERAL
from x2vlm.loading import load
from x2vlm.suites import suite_named
from x2vlm.suites.suite import CONDITIONS, SCORES, Judged

ROOT = Path(__file__).parent.parent
CONFIG = "configs/demo/pretrain_composition.yaml"
VARIANTS = {
    "without": ["data.images.hard_negatives=null", "data.regions.hard_negatives=null"],
    "with": [],
}
METRIC = "accuracy"
RECALLS = [
    f"{direction} R@1 ({score})" for score in ("cosine", "reranked") for direction in ("image to text", "text to image")
]
"""Metrics on whole scenes and their captions, which show the cost of hard negatives."""


def trained(variant: str, seed: int, model: Path, folder: Path) -> Path:
    """Returns the folder of a run. Trains the run if it is not complete."""
    output = folder / f"{variant}-seed{seed}"
    if not (output / EVALUATION_FILE).is_file():
        threads = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
        overrides = [f"seed={seed}", f"init.checkpoint={model}", *VARIANTS[variant]]
        command = [
            sys.executable,
            "run.py",
            "--task",
            "pretrain",
            "--config",
            CONFIG,
            "--cpu",
            "1",
            "--output",
            str(output),
        ]
        subprocess.run(
            [*command, "--resume", *overrides],
            cwd=ROOT,
            check=True,
            stdout=subprocess.DEVNULL,
            env={**os.environ, **threads},
        )
    return output


def mean_of(judged: list[Judged]) -> Judged:
    """Returns the mean judgement of several models on each example."""
    values = {
        score: {
            condition: np.mean([each.values[score][condition] for each in judged], axis=0) for condition in CONDITIONS
        }
        for score in SCORES
    }
    return replace(judged[0], values=values)


def main(
    *,
    seeds: Annotated[tuple[int, ...], SEVERAL] = (0, 1, 2),
    jobs: int = 2,
    model: Path = Path("runs/demo/pretrain-seed0"),
    data: Path = Path("data/scenes"),
    folder: Path = Path("runs/demo/hard_negatives"),
) -> int:
    """Effect of hard negative texts in the demo: the fraction of images in drawn pairs that prefer their own text, and the
    recalls on whole scenes.

    For each seed, the demo's model is trained further on captions that make a single statement, with and without hard negatives.
    Complete runs are skipped. The confidence intervals are over images, for the mean over seeds. Run make demo first.

    Args:
        seeds: seeds of the runs.
        jobs: number of parallel runs, one process each.
        model: the demo's pre-trained model.
        data: the scenes.
        folder: folder of the runs.

    Examples:
        python -m benchmarks.composition
    """

    @one_line_errors
    def run() -> int:
        suite = suite_named("drawn-pairs")
        cases = suite.read(data, ())
        models = {"before": [model]}
        with ThreadPoolExecutor(jobs) as pool:
            runs = {
                (variant, seed): pool.submit(trained, variant, seed, model, folder)
                for seed in seeds
                for variant in VARIANTS
            }
            models |= {variant: [runs[variant, seed].result() for seed in seeds] for variant in VARIANTS}
        for variant, paths in models.items():
            judged = [suite.judge(load(path), cases) for path in paths]
            of_seeds = [suite.results(each, draws=0) for each in judged]
            sys.stdout.write(f"{variant}\n")
            for score, results in suite.results(mean_of(judged), draws=1000).items():
                for index, result in enumerate(results):
                    if result.measure == METRIC and result.interval is not None:
                        low, high = (100 * end for end in result.interval)
                        each = " ".join(f"{100 * of_seed[score][index].value:5.1f}" for of_seed in of_seeds)
                        row = f"  {score:8} {result.row:10} {100 * result.value:5.1f} [{low:.1f}, {high:.1f}]"
                        sys.stdout.write(f"{row}  seeds: {each}\n")
            evaluations = [
                json.loads((path / EVALUATION_FILE).read_text(encoding="utf-8"))["held-out"] for path in paths
            ]
            for name in RECALLS:
                values = [100 * evaluation[name]["value"] for evaluation in evaluations]
                numbers = " ".join(f"{value:5.1f}" for value in values)
                sys.stdout.write(f"  {name:30} {np.mean(values):5.1f}  seeds: {numbers}\n")
        return 0

    return run()


if __name__ == "__main__":
    sys.exit(call(main, sys.argv[1:], "python -m benchmarks.composition"))
