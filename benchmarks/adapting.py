"""What models gain and lose when they are adapted to a few hundred images of another kind: ``python -m benchmarks.adapting NAME``
(docs/ablations.md)."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np

from benchmarks.harness import print_line
from tasks.box_sets import EXACT
from tasks.evaluation import read_evaluations
from tools.reproduce.runs import Seeds
from utils.commands import call
from utils.files import read_text, write_text
from utils.flags import Positive, one_of, read_by

SCENES, TEXTILE = Path("data/scenes"), Path("data/textile")
RECORDS, WITHOUT_CLIP_ART = Path("data/real/records"), Path("data/real/without_clipart")
PRETRAINED = Path("runs/real/without_clipart")

NEW_IMAGES = 300
"""Number of training images of the new kind."""

POINTS = 5
"""Number of steps between the starting and the final weights in an interpolation."""

ADAPTERS = "optim.lora={rank: 8, lr: 3e-3}"


class Setup(NamedTuple):
    """An adaptation.

    Attributes:
        config: the YAML file.
        overrides: overrides of all variants.
        variants: the overrides of each variant, by name. The first is plain fine-tuning.
        interpolated: variants whose final weights are also interpolated with the starting weights.
        metric: the metric of the new and of the old task.
    """

    config: Path
    overrides: tuple[str, ...]
    variants: Mapping[str, Sequence[str]]
    interpolated: tuple[str, ...]
    metric: str


class Result(NamedTuple):
    """What a model reached, as fractions: on the new task, on the old task (the mean over its splits), and on phrases of the new
    task in images of the old one. The values of the starting weights are None if they were not measured."""

    new: float
    old: float
    absent: float | None
    before: tuple[float, float, float | None] | None


def scenes_retrieval() -> Setup:
    """The demo's model finds captions of scenes in another style. New words and looks are learnt from 300 scenes."""
    replay = f"data.replay={{share: 0.5, train: {{annotations: {SCENES}/retrieval_train.jsonl}}}}"
    distillation = "loss.distillation=2"
    return Setup(
        Path("configs/demo/retrieval.yaml"),
        (
            f"data.train.annotations={TEXTILE}/retrieval_train.jsonl",
            f"evaluation.validation.annotations={TEXTILE}/retrieval_val.jsonl",
            f"evaluation.test.test.annotations={TEXTILE}/retrieval_test.jsonl",
            f"evaluation.keep.test.earlier.annotations={SCENES}/retrieval_test.jsonl",
            f"evaluation.keep.validation.annotations={SCENES}/retrieval_val.jsonl",
            "evaluation.panels=0",
            *("train.validate_every=80", "train.checkpoint_every=80"),
        ),
        {
            "plain": [],
            "LoRA": [ADAPTERS],
            "distillation": [distillation],
            "replay": [replay],
            "replay, distillation": [replay, distillation],
        },
        ("plain", "replay", "replay, distillation"),
        "mean recall",
    )


def scenes_boxes() -> Setup:
    """The demo's model for sets of boxes learns phrases with one box each in scenes of another style."""
    replay = f"data.replay={{share: 0.5, train: {{annotations: {SCENES}/sets_train.jsonl}}}}"
    absent = "data.absent=0.2"
    return Setup(
        Path("configs/demo/grounding_sets.yaml"),
        (
            "init.checkpoint=runs/demo/grounding_sets",
            f"data.train.annotations={TEXTILE}/refer_train.jsonl",
            f"evaluation.validation.annotations={TEXTILE}/refer_val.jsonl",
            f"evaluation.test.test.annotations={TEXTILE}/refer_test.jsonl",
            f"evaluation.keep.test.earlier.annotations={SCENES}/sets_test.jsonl",
            f"evaluation.keep.validation.annotations={SCENES}/sets_val.jsonl",
            "evaluation.panels=0",
            "optim.freeze=null",
            *("train.steps=200", "train.validate_every=100", "train.checkpoint_every=100"),
        ),
        {
            "plain": [],
            "LoRA": [ADAPTERS],
            "absent": [absent],
            "replay": [replay],
            "replay, absent": [replay, absent],
        },
        ("plain", "replay", "replay, absent"),
        EXACT,
    )


def real() -> Setup:
    """A model pre-trained on emoji and stamps learns the names of 300 pieces of clip art."""
    write_records_without_clip_art()
    replay = f"data.replay={{share: 0.5, train: {{annotations: {WITHOUT_CLIP_ART}/train.jsonl, images: {RECORDS}}}}}"
    distillation = "loss.distillation=2"
    kept = [f"{source}: {{annotations: {RECORDS}/test_{source}.jsonl}}" for source in OLD_SOURCES]
    return Setup(
        Path("configs/real/retrieval.yaml"),
        (
            f"init.checkpoint={PRETRAINED}",
            f"data.train={{annotations: {WITHOUT_CLIP_ART}/new.jsonl, images: {RECORDS}}}",
            f"evaluation.validation.annotations={RECORDS}/val_clipart.jsonl",
            f"evaluation.test={{=: {{clipart: {{annotations: {RECORDS}/test_clipart.jsonl}}}}}}",
            f"evaluation.keep.test={{{', '.join(kept)}}}",
            f"evaluation.keep.validation={{annotations: {WITHOUT_CLIP_ART}/val.jsonl, images: {RECORDS}}}",
            "evaluation.panels=0",
        ),
        {
            "plain": [],
            "LoRA": [ADAPTERS],
            "distillation": [distillation],
            "replay": [replay],
            "replay, distillation": [replay, distillation],
        },
        ("plain", "replay, distillation"),
        "mean recall",
    )


SETUPS = {"scenes_retrieval": scenes_retrieval, "scenes_boxes": scenes_boxes, "real": real}

OLD_SOURCES = ("stamps", "emoji_google", "emoji_fluent")


def write_records_without_clip_art() -> None:
    """Writes the records of the other sources, composites in which no name is that of a piece of clip art, and the records of
    :data:`NEW_IMAGES` pieces of clip art."""

    def rows(name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in read_text(RECORDS / f"{name}.jsonl").splitlines()]

    def write(name: str, chosen: Iterable[dict[str, Any]]) -> None:
        write_text(
            WITHOUT_CLIP_ART / f"{name}.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in chosen)
        )

    WITHOUT_CLIP_ART.mkdir(parents=True, exist_ok=True)
    clip_art = rows("train_clipart")
    names = {
        text for row in clip_art for text in ([row["caption"]] if isinstance(row["caption"], str) else row["caption"])
    }
    for split in ("train", "val"):
        write(split, (row for source in OLD_SOURCES for row in rows(f"{split}_{source}")))
    write(
        "regions_train",
        (row for row in rows("regions_train_composites") if not any(box["caption"] in names for box in row["elems"])),
    )
    order = np.random.default_rng(0).permutation(len(clip_art))
    write("new", (clip_art[index] for index in sorted(order[:NEW_IMAGES])))


def pretrain_without_clip_art() -> None:
    """Trains the starting model of :func:`real`, as ``make real`` trains its model."""
    write_records_without_clip_art()
    files = f"{WITHOUT_CLIP_ART}/regions_train.jsonl, {RECORDS}/regions_train_maps.jsonl"
    run(
        PRETRAINED,
        Path("configs/real/pretrain.yaml"),
        f"data.images.files=[{WITHOUT_CLIP_ART}/train.jsonl]",
        f"data.images.image_root={RECORDS}",
        f"data.regions.files=[{files}]",
        f"data.regions.image_root={RECORDS}",
        cpu=2,
    )


def run(output: Path, config: Path, *overrides: str, cpu: int = 1) -> None:
    """Makes a run in ``output``, unless it is finished."""
    if not (output / "evaluation.json").is_file():
        x2vlm("--config", str(config), "--cpu", str(cpu), "--output", str(output), "--resume", *overrides)


def x2vlm(*arguments: str) -> None:
    """Calls run.py; its output goes to a log beside the runs."""
    print_line(f"python run.py {' '.join(arguments)}")
    subprocess.run(
        [sys.executable, "run.py", *arguments], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def adapt(setup: Setup, variant: str, seed: int, folder: Path) -> None:
    """Fine-tunes a variant with a seed, and measures the interpolated weights."""
    overrides = (*setup.overrides, f"seed={seed}")
    final = folder_of(folder, variant, seed)
    run(final, setup.config, *overrides, *setup.variants[variant])
    if variant in setup.interpolated:
        measured = folder_of(folder, f"{variant}, interpolated", seed)
        weights = measured.with_name(f"{measured.name}-weights")
        if not weights.exists():
            weights.parent.mkdir(parents=True, exist_ok=True)
            x2vlm("checkpoint", "interpolate", str(final), "--out", str(weights), "--points", str(POINTS))
        if not (measured / "evaluation.json").is_file():
            start = next((each for each in overrides if each.startswith("init.checkpoint=")), "")
            others = [each for each in overrides if each != start]
            evaluate = ("--config", str(setup.config), "--cpu", "1", "--evaluate", "--output", str(measured))
            x2vlm(*evaluate, *others, f"init.checkpoint={weights}")


def folder_of(folder: Path, variant: str, seed: int) -> Path:
    return folder / variant.replace(", ", "-").replace(" ", "_") / f"seed{seed}"


def result_of(folder: Path, metric: str) -> Result:
    """Reads the results of a run."""
    evaluations = read_evaluations(folder)
    kept = [evaluation[metric] for split, evaluation in evaluations.items() if split.startswith("keep: ")]
    phrases = [
        evaluation["recognised as absent"]
        for split, evaluation in evaluations.items()
        if split.startswith("phrases of ")
    ]
    new = next(each[metric] for split, each in evaluations.items() if not split.startswith(("keep: ", "phrases of ")))

    def mean(values: Iterable[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return statistics.fmean(known) if known else None

    before = None
    if new.before is not None:
        before = (new.before, mean(each.before for each in kept) or 0.0, mean(each.before for each in phrases))
    return Result(new.value, mean(each.value for each in kept) or 0.0, mean(each.value for each in phrases), before)


def table(setup: Setup, folder: Path, seeds: Sequence[int]) -> list[str]:
    """Returns the lines of a Markdown table of the means and standard deviations over seeds. The last columns show the share of
    plain fine-tuning's gain, and of its loss."""
    interpolated = {name: f"{name}, interpolated" for name in setup.interpolated}
    names = [each for name in setup.variants for each in (name, interpolated.get(name)) if each is not None]
    results = {name: [result_of(folder_of(folder, name, seed), setup.metric) for seed in seeds] for name in names}
    first = results[names[0]]
    start = first[0].before
    assert start is not None
    gain = statistics.fmean(each.new - start[0] for each in first)
    loss = statistics.fmean(start[1] - each.old for each in first)
    lines = [
        f"| {setup.metric} | new | old | absent phrases | of the gain | of the loss |",
        "|---|---|---|---|---|---|",
    ]
    lines.append(f"| starting weights | {' | '.join(percent([value]) for value in start)} | | |")
    for name, found in results.items():
        new, old, absent = zip(*(each[:3] for each in found), strict=True)
        gained = statistics.fmean(each.new - start[0] for each in found) / gain
        lost = statistics.fmean(start[1] - each.old for each in found) / loss
        lines.append(f"| {name} | {percent(new)} | {percent(old)} | {percent(absent)} | {gained:.0%} | {lost:.0%} |")
    return lines


def percent(values: Sequence[float | None]) -> str:
    known = [100 * value for value in values if value is not None]
    if not known:
        return ""
    deviation = f" ± {statistics.stdev(known):.1f}" if len(known) > 1 else ""
    return f"{statistics.fmean(known):.1f}{deviation}%"


def main(
    name: Annotated[str, read_by(one_of([*SETUPS, "pretrain"]))],
    /,
    *,
    seeds: Seeds = (0, 1, 2),
    jobs: Positive = 2,
    only: tuple[str, ...] = (),
    output: Path = Path("runs/adapting"),
) -> int:
    """Adapts a model in several ways with several seeds, and prints a table. The same command resumes after an interruption.

    scenes_retrieval and scenes_boxes need `make demo`, and `python -m demo.scenes --out data/textile --style textile --seed 1
    --train 300 --val 100 --test 200`. scenes_boxes also needs the run of configs/demo/grounding_sets.yaml. real needs the records
    and weights of `make real`, and its starting model, which `python -m benchmarks.adapting pretrain` trains.

    Args:
        name: scenes_retrieval, scenes_boxes or real; pretrain trains the starting model of real.
        seeds: seeds of the runs.
        jobs: number of runs at the same time.
        only: only make the runs of this variant, and print no table; may be repeated.
        output: folder of the runs.

    Examples:
        python -m benchmarks.adapting scenes_retrieval
        python -m benchmarks.adapting real --seeds 0 --only plain
    """
    if name == "pretrain":
        pretrain_without_clip_art()
        return 0
    setup, folder, seeds = SETUPS[name](), output / name, seeds or (0,)
    variants = only or tuple(setup.variants)
    with ThreadPoolExecutor(jobs) as pool:
        made = [pool.submit(adapt, setup, variant, seed, folder) for seed in seeds for variant in variants]
        for each in made:
            each.result()
    if not only:
        sys.stdout.write("\n".join(table(setup, folder, seeds)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(call(main, sys.argv[1:], "python -m benchmarks.adapting"))
