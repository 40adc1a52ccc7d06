"""Gain from pre-training in the demo's tasks: ``python -m benchmarks.demo_seeds retrieval nlvr grounding vqa captioning``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

from engine.run_files import EVALUATION_FILE
from tasks import TASKS
from utils.commands import call
from utils.flags import SEVERAL, one_of, read_by

ROOT = Path(__file__).parent.parent
Metrics = dict[str, dict[str, Any]]
"""The metrics of a split, as in ``evaluation.json``."""

INITIALISATIONS = {"pre-trained": [], "from scratch": ["init.checkpoint=null"]}


def run(task: str, start: str, seed: int, folder: Path) -> Metrics:
    """Returns the test metrics of a run. Starts the run if it has no metrics yet."""
    output = folder / f"{task}-{start.replace(' ', '-')}-seed{seed}"
    report = output / EVALUATION_FILE
    if not report.is_file():
        command = [sys.executable, "run.py", "--task", task, "--cpu", "1", "--output", str(output), "--resume"]
        subprocess.run(
            [*command, f"seed={seed}", *INITIALISATIONS[start]],
            cwd=ROOT,
            check=True,
            stdout=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")},
        )
    return json.loads(report.read_text(encoding="utf-8"))["test"]


def lines_of(task: str, runs_by_start: dict[str, list[Metrics]]) -> list[str]:
    """Returns the lines of a table with all metrics that have a chance level, for all seeds and both initialisations."""
    first = runs_by_start["pre-trained"][0]
    names = [name for name, metric in first.items() if "chance" in metric]
    width = max(len(name) for name in (*names, task))
    column = max(6 * len(runs_by_start["pre-trained"]), len("from scratch"))
    lines = [f"{task:{width}}  {'pre-trained':>{column}}  {'from scratch':>{column}}  chance  worst above best"]
    for name in names:
        values = {start: [metrics[name]["value"] for metrics in runs] for start, runs in runs_by_start.items()}
        shown = {start: "".join(f"{100 * value:6.1f}" for value in seeds) for start, seeds in values.items()}
        above = min(values["pre-trained"]) > max(values["from scratch"])
        lines.append(
            f"{name:{width}}  {shown['pre-trained']:>{column}}  {shown['from scratch']:>{column}}  "
            f"{100 * first[name]['chance']:6.1f}  {'yes' if above else 'no'}"
        )
    sizes = ", ".join(f"{metric['value']} {name}" for name, metric in first.items() if metric["unit"] == "count")
    return [*lines, f"(x 100; {len(runs_by_start['pre-trained'])} seeds; {sizes})"]


FINE_TUNING = [name for name in TASKS if name != "pretrain"]


def main(
    tasks: list[Annotated[str, read_by(one_of(FINE_TUNING))]],
    /,
    *,
    seeds: Annotated[tuple[int, ...], SEVERAL] = (0, 1, 2),
    jobs: int = 2,
    folder: Path = Path("runs/demo/seeds"),
) -> int:
    """Gain from pre-training in the demo's tasks.

    For each task and seed, the benchmark fine-tunes the demo's pre-trained model and, for the same number of steps, a model with
    random weights, and evaluates both on the test scenes. Complete runs are skipped, and stopped runs are resumed. The benchmark
    prints all metrics of all runs, and whether the worst pre-trained run is better than the best run from scratch. A run takes
    minutes; run make demo first.

    Args:
        tasks: tasks to run with their demo configs.
        seeds: seeds of the runs.
        jobs: number of parallel runs, one thread each.
        folder: folder of the runs.

    Examples:
        python -m benchmarks.demo_seeds retrieval nlvr grounding vqa captioning
    """
    with ThreadPoolExecutor(jobs) as pool:
        runs = {
            (task, start, seed): pool.submit(run, task, start, seed, folder)
            for task in tasks
            for start in INITIALISATIONS
            for seed in seeds
        }
        for task in tasks:
            runs_by_start = {start: [runs[task, start, seed].result() for seed in seeds] for start in INITIALISATIONS}
            sys.stdout.write("\n".join(lines_of(task, runs_by_start)) + "\n\n")
            sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(call(main, sys.argv[1:], "python -m benchmarks.demo_seeds"))
