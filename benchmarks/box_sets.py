"""Compares three methods of predicting sets of boxes in the demo: ``python -m benchmarks.box_sets``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

import numpy as np

from dataset.config import GroundingSplitConfig
from dataset.tasks.grounding import ANY_NUMBER, Phrase, read_phrases
from engine.run_files import EVALUATION_FILE
from metrics.box_sets import ScoredBoxes
from tasks.box_sets import EXACT, KINDS, MOST_PROBABLE, SINGLE, evaluate_sets
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
RECIPE = ["train.steps=2500", "train.validate_every=500", "train.checkpoint_every=500", "optim.freeze.vision=true"]
"""The published head is trained with the same recipe as the set head in its config."""

VARIANTS = {"set head": ("grounding_sets", []), "published head": ("grounding", [*PHRASES, *RECIPE])}
SEVERAL_EXACT = f"{list(KINDS)[-1]}: {EXACT}"
MIN_PROBABILITY = 0.05
"""Regions below this probability are ignored when the threshold is chosen."""


def trained(variant: str, seed: int, folder: Path) -> dict[str, float]:
    """Returns the test metrics of a run. Starts the run if it has no metrics yet."""
    config, overrides = VARIANTS[variant]
    output = folder / f"{config}-seed{seed}"
    report = output / EVALUATION_FILE
    if not report.is_file():
        given = ["--config", f"configs/demo/{config}.yaml", "--cpu", "1", "--output", str(output), "--resume"]
        command = [sys.executable, "run.py", *given, f"seed={seed}", *overrides]
        threads = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, env={**os.environ, **threads})
    metrics = json.loads(report.read_text(encoding="utf-8"))["test"]
    return {name: metric["value"] for name, metric in metrics.items()}


def regions_of(model: Model, items: list[Phrase]) -> list[ScoredBoxes]:
    """Returns the regions that match each phrase, with their probabilities."""
    found = []
    for item in items:
        [boxes] = model.locate(str(item.image.path), [item.text], boxes="all", threshold=MIN_PROBABILITY)
        width, height = item.size
        relative = [
            ((box.x + box.width / 2) / width, (box.y + box.height / 2) / height, box.width / width, box.height / height)
            for box in boxes
        ]
        scores = [box.score for box in boxes]
        found.append(ScoredBoxes(np.array(relative).reshape(-1, 4), np.array(scores, dtype=np.float64)))
    return found


def region_metrics(path: Path) -> dict[str, tuple[Evaluation, float]]:
    """Returns metrics on the test phrases for two thresholds: the best on all validation phrases, and the best on the validation
    phrases with several boxes."""
    model = load(path)
    splits = {
        split: read_phrases(GroundingSplitConfig(annotations=SCENES.format(split)), "data", 0.0, ANY_NUMBER)
        for split in ("val", "test")
    }
    found = {split: regions_of(model, items) for split, items in splits.items()}
    thresholds = [MIN_PROBABILITY, *np.arange(0.1, 1.0, 0.05).round(2).tolist(), 0.97, 0.99]
    on_val = {each: evaluate_sets(splits["val"], found["val"], each).values() for each in thresholds}
    chosen = {}
    for title, metric in (("regions", EXACT), ("regions, several", SEVERAL_EXACT)):
        _, best = max((values[metric], each) for each, values in on_val.items())
        chosen[title] = evaluate_sets(splits["test"], found["test"], best), best
    return chosen


def main(
    *,
    seeds: Annotated[tuple[int, ...], SEVERAL] = (0, 1, 2),
    jobs: int = 2,
    model: Path = Path("runs/demo/pretrain-seed0"),
    folder: Path = Path("runs/demo/box_sets"),
) -> int:
    """Compares three methods of predicting sets of boxes in the demo: the set head, the published head, and regions that the
    pre-trained model matches.

    For each seed, the benchmark fine-tunes the demo's pre-trained model with both heads on the same phrases; the published head
    uses only phrases with a single box. Complete runs are skipped, and stopped runs are resumed. Regions need no training; the
    threshold on their probability is chosen on validation scenes. All methods are measured on test scenes, separately for phrases
    without a box, with one box and with several boxes. Run make demo first.

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
            runs = {
                (variant, seed): pool.submit(trained, variant, seed, folder) for variant in VARIANTS for seed in seeds
            }
            results = {variant: [runs[variant, seed].result() for seed in seeds] for variant in VARIANTS}
        regions = region_metrics(model)
        sets, published = results["set head"], results["published head"]
        rows: list[tuple[str, str | None]] = [("N-acc", None)]
        rows += [(f"{kind}: {EXACT}", None) for kind in list(KINDS)[1:]]
        rows += [(MOST_PROBABLE, SINGLE), ("AP", None), ("AP50", None)]
        width = max(len(name) for name, _ in rows)
        titles = "".join(f"{title:>18}" for title in regions)
        sys.stdout.write(f"{'':{width}}  {'set head':>20}  {'published head':>20}{titles}\n")
        for name, published_name in rows:
            ours = "".join(f"{100 * run[name]:7.1f}" for run in sets)
            theirs = "" if published_name is None else "".join(f"{100 * run[published_name]:7.1f}" for run in published)
            others = "".join(f"{100 * evaluation[name].value:18.1f}" for evaluation, _ in regions.values())
            sys.stdout.write(f"{name:{width}}  {ours:>20}  {theirs:>20}{others}\n")
        thresholds = ", ".join(
            f"{title} with a probability of at least {threshold:g}" for title, (_, threshold) in regions.items()
        )
        sys.stdout.write(f"(x 100; seeds {', '.join(map(str, seeds))}; {thresholds})\n")
        return 0

    return run()


if __name__ == "__main__":
    sys.exit(call(main, sys.argv[1:], "python -m benchmarks.box_sets"))
