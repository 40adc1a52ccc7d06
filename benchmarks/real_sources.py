"""Measures the emoji and clip art model on pictures of held-out concepts: ``python -m benchmarks.real_sources RUN [RUN …]``."""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from demo.real.collect import CUTOUT_SOURCES
from engine.run_files import EVALUATION_FILE
from metrics.retrieval import RECALL_AT
from utils.commands import call
from utils.errors import UserError

RECORDS = Path("data/real/records")
COUNTS = RECORDS / "real.json"
"""This file is written together with the records."""

DIRECTIONS = ("image to text", "text to image")
RECALLS = tuple(f"{direction} R@1 ({stage})" for stage in ("cosine", "reranked") for direction in DIRECTIONS)
MEAN_RECALL = "mean recall, cosine"
BOXES = {"composites": "object box, IoU >= 0.5", "maps": "region box, IoU >= 0.5"}
WORDS = "masked word"

Metrics = dict[str, dict[str, float]]
"""Each metric with its ``value`` and ``chance``, as in ``evaluation.json``."""


def measure(run: Path, split: str, name: str, overrides: Sequence[str]) -> Metrics:
    """Evaluates a run's last weights with the run's config, on the files that ``overrides`` name. The results are cached in
    ``RUN/SPLIT_NAME``."""
    folder, finished = run / f"{split}_{name}", run / EVALUATION_FILE
    if not run.is_dir():
        raise UserError("no such folder", where=run, remedy="pass the folder of a run")
    if not finished.is_file():
        raise UserError(
            f"{run} is not a finished run: it has no {EVALUATION_FILE}",
            remedy="pass a finished run, or finish this one with --resume",
        )
    report = folder / EVALUATION_FILE
    made = max(path.stat().st_mtime for path in (finished, COUNTS) if path.is_file())
    if not report.is_file() or report.stat().st_mtime < made:
        sys.stderr.write(f"{run}: measuring {split}_{name}\n")
        command = [sys.executable, "run.py", "--evaluate", "--config", f"{run}/config.yaml", "--output", str(folder)]
        start = [f"init.checkpoint={run}", "init.vision=null", "init.text=null"]
        try:
            subprocess.run([*command, *start, *overrides], check=True, stdout=subprocess.DEVNULL)
        except subprocess.CalledProcessError:
            raise UserError(
                "the evaluation failed with the error above", where=folder, remedy="fix it and repeat the command"
            ) from None
    (metrics,) = json.loads(report.read_text(encoding="utf-8")).values()
    predictions = json.loads((folder / "predictions_held-out.json").read_text(encoding="utf-8"))
    return {**metrics, MEAN_RECALL: {"value": mean_recall(predictions)}}


def mean_recall(predictions: Sequence[Mapping[str, Any]]) -> float:
    """Returns the mean of R@1, R@5 and R@10 by cosine in both directions, or NaN if nothing was ranked."""
    ranks = [each["ranks"]["cosine"] for each in predictions if "ranks" in each]
    found = [
        isinstance(of[direction], int) and of[direction] <= k
        for of in ranks
        for direction in DIRECTIONS
        for k in RECALL_AT
    ]
    return statistics.fmean(found) if found else math.nan


def measure_all(run: Path, split: str) -> dict[str, Metrics]:
    """Returns the metrics of each source, and of boxes."""
    metrics = {
        source: measure(
            run, split, source, [f"evaluation.files=[{RECORDS}/{split}_{source}.jsonl]", "evaluation.region_files=[]"]
        )
        for source in CUTOUT_SOURCES
    }
    for kind in BOXES:
        files = f"evaluation.region_files=[{RECORDS}/regions_{split}_{kind}.jsonl]"
        metrics[kind] = measure(run, split, kind, ["evaluation.files=[]", files])
    return metrics


def mean_and_spread(runs: Sequence[dict[str, Metrics]], name: str, metric: str) -> str:
    """Formats the mean over runs in percent, with the standard deviation if there are several runs."""
    values = [100 * run[name][metric]["value"] for run in runs]
    mean = statistics.fmean(values)
    return f"{mean:.1f} ± {statistics.stdev(values):.1f}" if len(values) > 1 else f"{mean:.1f}"


def _row(runs: Sequence[dict[str, Metrics]], name: str, metric: str) -> str:
    # Each seed masks different words, so the chance levels differ.
    chance = statistics.fmean(100 * run[name][metric]["chance"] for run in runs)
    return f"| {name} | {mean_and_spread(runs, name, metric)} | {chance:.1f} |"


def table(runs: Sequence[dict[str, Metrics]]) -> str:
    """Returns Markdown tables of retrieval, boxes and masked words."""
    headings = [recall.replace(" R@1", "") for recall in RECALLS]
    lines = [f"| R@1, % | {' | '.join(headings)} | chance | {MEAN_RECALL} |", "|---" * 7 + "|"]
    for source in CUTOUT_SOURCES:
        chance = 100 * runs[0][source][RECALLS[0]]["chance"]
        measured = " | ".join(mean_and_spread(runs, source, recall) for recall in RECALLS)
        lines.append(f"| {source} | {measured} | {chance:.1f} | {mean_and_spread(runs, source, MEAN_RECALL)} |")
    lines += ["", "| boxes with IoU >= 0.5, % | measured | chance |", "|---|---|---|"]
    lines += [_row(runs, kind, metric) for kind, metric in BOXES.items()]
    lines += ["", "| masked words, % | measured | chance |", "|---|---|---|"]
    lines += [_row(runs, source, WORDS) for source in CUTOUT_SOURCES]
    return "\n".join(lines) + "\n"


def main(runs: list[Path], /, *, split: Literal["val", "test"] = "test") -> int:
    """Measures the emoji and clip art model on pictures of held-out concepts.

    For each source separately, names are ranked for each picture and pictures for each name, by cosine and with re-ranking, and
    masked words of names are predicted. Then names of cut-outs are located in composites, and names of divisions in maps. For
    several runs, such as three seeds, the tables show means with standard deviations. Results that are newer than the run and the
    records are reused.

    Args:
        runs: folders of runs of configs/real/pretrain.yaml.
        split: split of the pictures.

    Examples:
        python -m benchmarks.real_sources RUN [RUN …]
    """
    sys.stdout.write(table([measure_all(run, split) for run in runs]))
    return 0


if __name__ == "__main__":
    sys.exit(call(main, sys.argv[1:], "python -m benchmarks.real_sources"))
