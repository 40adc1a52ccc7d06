"""Sets of boxes in the demo, by three ways: ``python -m benchmarks.box_sets``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

import numpy as np

from dataset.tasks.grounding import GroundingSplitConfig, Phrase, read_phrases
from engine.run_files import EVALUATION_FILE
from metrics.box_sets import ScoredBoxes
from tasks.box_sets import EXACT, KINDS, SINGLE, evaluate_sets
from tasks.evaluation import Evaluation
from utils.commands import call
from utils.errors import one_line_errors
from utils.flags import SEVERAL
from x2vlm.loading import load
from x2vlm.model import Model

ROOT = Path(__file__).parent.parent
SCENES = "data/scenes/sets_{}.jsonl"
PHRASES = [
    f"data.train.annotations={SCENES.format('train')}",
    f"evaluation.validation.annotations={SCENES.format('val')}",
    f"evaluation.test.test.annotations={SCENES.format('test')}",
]
RECIPE = ["train.steps=1500", "train.validate_every=500", "train.checkpoint_every=500", "optim.freeze.vision=true"]
"""The published head trains as the head for sets does in its config."""

WAYS = {"set head": ("grounding_sets", []), "published head": ("grounding", [*PHRASES, *RECIPE])}
LEAST = 0.05
"""Smallest probability of a region that is looked at, to choose a threshold."""

MOST_BOXES = range(100)


def trained(way: str, seed: int, folder: Path) -> dict[str, float]:
    """The test metrics of a run, which is started if it has none yet."""
    config, overrides = WAYS[way]
    output = folder / f"{config}-seed{seed}"
    report = output / EVALUATION_FILE
    if not report.is_file():
        command = [
            sys.executable,
            "run.py",
            "--task",
            "grounding",
            "--config",
            f"configs/demo/{config}.yaml",
            "--cpu",
            "1",
        ]
        command += ["--output", str(output), "--resume", f"seed={seed}", *overrides]
        threads = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, env={**os.environ, **threads})
    metrics = json.loads(report.read_text(encoding="utf-8"))["test"]
    return {name: metric["value"] for name, metric in metrics.items()}


def regions_of(model: Model, items: list[Phrase]) -> list[ScoredBoxes]:
    """The regions that match each phrase, with their probabilities."""
    found = []
    for item in items:
        [boxes] = model.locate(str(item.image.path), [item.text], boxes="all", threshold=LEAST)
        width, height = item.size
        relative = [
            ((box.x + box.width / 2) / width, (box.y + box.height / 2) / height, box.width / width, box.height / height)
            for box in boxes
        ]
        scores = [box.score for box in boxes]
        if not boxes:  # a set needs a box, which no threshold accepts here
            relative, scores = [(0.5, 0.5, 1.0, 1.0)], [0.0]
        found.append(ScoredBoxes(np.array(relative), np.array(scores, dtype=np.float64)))
    return found


def of_regions(path: Path) -> tuple[Evaluation, float]:
    """Metrics of the test phrases, with the threshold that is best on the validation phrases."""
    model = load(path)
    splits = {
        split: read_phrases(GroundingSplitConfig(annotations=SCENES.format(split)), "data", 0.0, MOST_BOXES)
        for split in ("val", "test")
    }
    found = {split: regions_of(model, items) for split, items in splits.items()}
    thresholds = [LEAST, *np.arange(0.1, 1.0, 0.05).round(2).tolist(), 0.97, 0.99]
    by_threshold = {each: evaluate_sets(splits["val"], found["val"], each)[EXACT].value for each in thresholds}
    best = max(by_threshold, key=by_threshold.__getitem__)
    return evaluate_sets(splits["test"], found["test"], best), best


def main(
    *,
    seeds: Annotated[tuple[int, ...], SEVERAL] = (0, 1, 2),
    jobs: int = 2,
    model: Path = Path("runs/demo/pretrain-seed0"),
    folder: Path = Path("runs/demo/box_sets"),
) -> int:
    """Sets of boxes in the demo: the head for sets, the published head, and regions that the pre-trained model matches.

    For each seed, the benchmark fine-tunes the demo's pre-trained model with both heads on the same phrases, of which the
    published head takes those with one box. It skips complete runs and resumes stopped ones. Regions need no training; the
    threshold of their probability is chosen on validation scenes. All are measured on test scenes, apart for phrases without a
    box, with one and with several. Run make demo first.

    Args:
        seeds: seeds of the runs.
        jobs: number of parallel runs, one process each.
        model: the demo's pre-trained model.
        folder: folder of the runs.

    Examples:
        python -m benchmarks.box_sets
    """

    @one_line_errors
    def run() -> int:
        with ThreadPoolExecutor(jobs) as pool:
            runs = {(way, seed): pool.submit(trained, way, seed, folder) for way in WAYS for seed in seeds}
            results = {way: [runs[way, seed].result() for seed in seeds] for way in WAYS}
        regions, threshold = of_regions(model)
        sets, published = results["set head"], results["published head"]
        rows: list[tuple[str, str, str | None]] = [("N-acc", "N-acc", None)]
        rows += [(f"{kind}: {EXACT}", f"{kind}: {EXACT}", None) for kind in list(KINDS)[1:]]
        single = f"with one box: {SINGLE} of the most probable box"
        rows += [(single, single, SINGLE), ("AP", "AP", None), ("AP50", "AP50", None)]
        width = max(len(title) for title, _, _ in rows)
        sys.stdout.write(f"{'':{width}}  {'set head':>20}  {'published head':>20}  regions\n")
        for title, name, of_published in rows:
            cells = ["".join(f"{100 * run[name]:7.1f}" for run in sets)]
            cells.append(
                "" if of_published is None else "".join(f"{100 * run[of_published]:7.1f}" for run in published)
            )
            sys.stdout.write(f"{title:{width}}  {cells[0]:>20}  {cells[1]:>20}  {100 * regions[name].value:7.1f}\n")
        sys.stdout.write(
            f"(x 100; seeds {', '.join(map(str, seeds))}; regions with a probability of at least {threshold:g})\n"
        )
        return 0

    return run()


if __name__ == "__main__":
    sys.exit(call(main, sys.argv[1:], "python -m benchmarks.box_sets"))
