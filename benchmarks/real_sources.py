"""Measures the emoji and clip art model on pictures of held-out concepts: ``python -m benchmarks.real_sources RUN [RUN …]``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np

from benchmarks.harness import write_results
from benchmarks.real_ridge import BASELINES, RANKS_FILE
from dataset.text.processors import TextProcessor
from demo.real.collect import CUTOUT_SOURCES
from engine.run_files import CONFIG_FILE, EVALUATION_FILE
from metrics.bootstrap import paired_interval
from metrics.retrieval import retrieval_recalls
from models.config import RankingScore
from models.pretraining.model import PretrainModel
from tasks.config import PretrainConfig
from tasks.inference import evaluating
from tasks.pretrain_evaluation import PretrainEvaluator
from utils.commands import call
from utils.config import load_config
from utils.errors import UserError
from utils.files import read_json, read_text
from x2vlm import load

RECORDS = Path("data/real/records")
COUNTS = "real.json"
"""This file is written together with the records."""

SCORES: tuple[RankingScore, ...] = get_args(RankingScore)
BOXES = {"composites": "object box, IoU >= 0.5", "maps": "region box, IoU >= 0.5"}
WORDS = "masked word"

Results = dict[str, Any]
"""The results of a run on a split, as in ``RUN/SPLIT.json``:

- ``ranks``: for each source and score, the ranks of each picture's name and of each name's picture, counted from 0;
- ``boxes`` and ``words``: for each kind of record, the accuracy and its chance level.
"""


def measure(run: Path, split: str) -> Results:
    """Measures a run's last weights. Results that are newer than the run and the records are read from ``RUN/SPLIT.json``.

    Raises:
        UserError: if the folder is not a finished run.
    """
    finished, path = run / EVALUATION_FILE, run / f"{split}.json"
    if not run.is_dir():
        raise UserError("no such folder", where=run, remedy="pass the folder of a run")
    if not finished.is_file():
        raise UserError(
            f"{run} is not a finished run: it has no {EVALUATION_FILE}",
            remedy="pass a finished run, or finish this one with --resume",
        )
    inputs = max(file.stat().st_mtime for file in (finished, RECORDS / COUNTS) if file.is_file())
    if path.is_file() and path.stat().st_mtime >= inputs:
        return cast(Results, read_json(path))

    config = load_config(run / CONFIG_FILE, [], PretrainConfig)
    settings = config.evaluation
    assert settings is not None, f"without evaluation, a run does not write {EVALUATION_FILE}"
    loaded = load(run)
    network = cast(PretrainModel, loaded.network)
    processor = TextProcessor(loaded.tokenizer, config.data.text)

    def evaluator(losses: set[str], **files: list[str]) -> PretrainEvaluator:
        (tested,) = (Path(file.replace(f"{split}_", "test_")) for (file,) in files.values())
        limit = len(read_text(tested).splitlines()) if split == "train" else None
        changes = {"files": [], "region_files": [], "validation_files": [], "limit": limit, **files}
        return PretrainEvaluator(
            settings.model_copy(update=changes), config.data, network, processor, config.seed, losses
        )

    results: Results = {"ranks": {}, "boxes": {}, "words": {}}
    with evaluating(network, "fp32"):
        for source in CUTOUT_SOURCES:
            sys.stderr.write(f"{run}: {split} pictures of {source}\n")
            pictures = evaluator({"mlm"}, files=[f"{RECORDS}/{split}_{source}.jsonl"])
            rankings = pictures.rank(pictures.records, [record.captions[0] for record in pictures.records])
            own = np.arange(len(pictures.records))
            results["ranks"][source] = {
                score: [ranks.tolist() for ranks in rankings.by(score).ranks(own)] for score in SCORES
            }
            results["words"][source] = _value_and_chance(pictures, WORDS)
        for kind, metric in BOXES.items():
            sys.stderr.write(f"{run}: {split} boxes of {kind}\n")
            boxes = evaluator({"l1", "giou"}, region_files=[f"{RECORDS}/regions_{split}_{kind}.jsonl"])
            results["boxes"][kind] = _value_and_chance(boxes, metric)
    write_results(path, results)
    return results


def _value_and_chance(evaluator: PretrainEvaluator, name: str) -> list[float | None]:
    (metric,) = (metric for metric in evaluator.evaluate().metrics if metric.name == name)
    return [metric.value, metric.chance]


def hits(ranks: dict[str, Sequence[Sequence[int]]]) -> np.ndarray:
    """Returns, for each picture of all sources, the share of the two directions whose first result is right.

    Args:
        ranks: for each source, the ranks of each picture's name and of each name's picture.
    """
    return np.concatenate([np.mean(np.array(ranks[source]) < 1, axis=0) for source in CUTOUT_SOURCES])


def table(runs: Sequence[Results], baselines: dict[str, Any]) -> str:
    """Returns Markdown tables of retrieval, boxes and masked words: means over runs.

    Args:
        runs: the results of runs with different seeds.
        baselines: the ranks of the linear baselines on the same pictures, by name and source; may be empty.
    """
    lines = [
        f"| R@1 in % (image to text / text to image) | pictures | {' | '.join([*SCORES, *baselines])} | mean recall, cosine |",
        "|---|---|" + "---|" * (len(SCORES) + len(baselines) + 1),
    ]
    for source in CUTOUT_SOURCES:
        pictures = len(runs[0]["ranks"][source]["cosine"][0])
        cells = [_recall([run["ranks"][source][score] for run in runs]) for score in SCORES]
        cells += [_recall([ranks[source]]) for ranks in baselines.values()]
        recalls = [_mean_recall(run["ranks"][source]["cosine"]) for run in runs]
        lines.append(f"| {source} | {pictures} | {' | '.join(cells)} | {mean_and_spread(recalls)} |")
    pooled = {score: np.stack([hits(_by_source(run, score)) for run in runs]) for score in SCORES}
    measured = [mean_and_spread(each.mean(axis=1).tolist()) for each in pooled.values()]
    measured += [f"{100 * hits(ranks).mean():.1f}" for ranks in baselines.values()]
    lines.append(f"| all, mean of both directions | {pooled['cosine'].shape[1]} | {' | '.join(measured)} | |")
    for heading, kinds in (("boxes with IoU >= 0.5, %", "boxes"), ("masked words, %", "words")):
        lines += ["", f"| {heading} | measured | chance |", "|---|---|---|"]
        for kind in runs[0][kinds]:
            # Each seed masks different words, so the chance levels differ.
            chance = np.mean([run[kinds][kind][1] for run in runs])
            values = mean_and_spread([run[kinds][kind][0] for run in runs])
            lines.append(f"| {kind} | {values} | {100 * chance:.1f} |")
    return "\n".join(lines) + "\n"


def differences(runs: Sequence[Results], baselines: dict[str, Any]) -> str:
    """Describes the differences in R@1 between the cosine and the other scores, and between the cosine and the baselines, with
    95% intervals over pictures and seeds. For the arguments, see :func:`table`."""
    pooled = {score: np.stack([hits(_by_source(run, score)) for run in runs]) for score in SCORES}
    compared: list[tuple[str, str, np.ndarray]] = [
        (score, "cosine", pooled[score] - pooled["cosine"]) for score in SCORES if score != "cosine"
    ]
    compared += [("cosine", name, pooled["cosine"] - hits(ranks)) for name, ranks in baselines.items()]
    ends = np.cumsum([len(runs[0]["ranks"][source]["cosine"][0]) for source in CUTOUT_SOURCES])
    lines = []
    for name, base, found in compared:
        low, high = paired_interval(found)
        by_seed = ", ".join(f"{100 * seed.mean():+.1f}" for seed in found)
        by_source = np.split(found.mean(axis=0), ends[:-1])
        in_pictures = ", ".join(
            f"{source} {each.sum():+.1f}" for source, each in zip(CUTOUT_SOURCES, by_source, strict=True)
        )
        lines.append(
            f"{name} minus {base}: {100 * found.mean():+.1f} points [{100 * low:.1f}, {100 * high:.1f}], by seed {by_seed}; "
            f"in pictures: {in_pictures}"
        )
    return "\n".join(lines) + "\n"


def _by_source(run: Results, score: RankingScore) -> dict[str, Any]:
    return {source: ranks[score] for source, ranks in run["ranks"].items()}


def _recall(runs: Sequence[Sequence[Sequence[int]]]) -> str:
    """Formats R@1 in both directions, averaged over runs."""
    return " / ".join(f"{100 * np.mean([np.array(run[way]) < 1 for run in runs]):.1f}" for way in (0, 1))


def _mean_recall(ranks: Sequence[Sequence[int]]) -> float:
    image_ranks, text_ranks = map(np.array, ranks)
    return retrieval_recalls(image_ranks, text_ranks)["mean recall"]


def mean_and_spread(values: Sequence[float]) -> str:
    """Formats the mean over runs in percent, with the standard deviation if there are several runs."""
    mean = f"{100 * np.mean(values):.1f}"
    return f"{mean} ± {100 * np.std(values, ddof=1):.1f}" if len(values) > 1 else mean


def main(runs: list[Path], /, *, split: Literal["train", "val", "test"] = "test") -> int:
    """Measures the emoji and clip art model on pictures of held-out concepts.

    For each source separately, names are ranked for each picture and pictures for each name, by each score, and masked words of
    names are predicted. Then names of cut-outs are located in composites, and names of divisions in maps. For several runs, such
    as three seeds, the tables show means, and the last lines show differences with 95% intervals. The linear baselines are
    included after ``python -m benchmarks.real_ridge``. Results that are newer than the run and the records are reused.

    Args:
        runs: folders of runs of configs/real/pretrain.yaml.
        split: split of the pictures; for train, the first of each source, the same number as in test.

    Examples:
        python -m benchmarks.real_sources RUN [RUN …]
    """
    results = [measure(run, split) for run in runs]
    file = RECORDS / RANKS_FILE
    ranks = read_json(file).get(split, {}) if file.is_file() else {}
    baselines = {f"baseline {name}": ranks[name] for name in BASELINES if name in ranks}
    sys.stdout.write(table(results, baselines) + "\n" + differences(results, baselines))
    return 0


if __name__ == "__main__":
    sys.exit(call(main, sys.argv[1:], "python -m benchmarks.real_sources"))
