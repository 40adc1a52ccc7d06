"""Training studies, in which alternatives are trained with several seeds: ``python -m benchmarks.studies NAME``.

``run.py sweep`` makes the runs and writes a table of all metrics. A study is a list of sweeps; this module adds the alternatives,
and a table of the main metrics. docs/ablations.md shows the results.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, NamedTuple

from commands.sweep import sweep, table_of
from launch.placement import Placement
from tasks.finetune import FineTuneTask
from tasks.kinds import find_task
from tools.reproduce.runs import Seeds
from utils.commands import call
from utils.config_files import read_config
from utils.errors import one_line_errors
from utils.files import write_text
from utils.flags import Override, Positive, one_of, read_by

SCENES = Path("data/scenes")
DEMO_TASKS = ("retrieval", "nlvr", "grounding", "vqa", "captioning")


class Sweep(NamedTuple):
    """Alternatives of a config.

    Attributes:
        config: the YAML file.
        variants: the overrides of each alternative, by name.
        metrics: the metrics in the last table; if empty, all metrics.
        overrides: overrides of all alternatives.
        cpu: number of processes per run.
    """

    config: Path
    variants: dict[str, list[str]]
    metrics: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()
    cpu: int = 1


def demo(name: str) -> Path:
    """Returns a config of the demo."""
    return Path(f"configs/demo/{name}.yaml")


def method(folder: Path) -> list[Sweep]:
    """Pre-trains the demo for 300 steps, unchanged and without one component of the paper's method at a time."""
    regions: dict[str, list[str]] = {}
    for name, descriptions in {"object": slice(0, 1), "region": slice(1, None)}.items():
        path = folder / f"{name}_descriptions.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, "".join(f"{line}\n" for line in keep_descriptions(descriptions, SCENES / "train.jsonl")))
        regions[name] = [f"data.regions.files=[{path}]", f"data.regions.image_root={SCENES}"]
    variants = {
        "all": [],
        "without region descriptions": regions["object"],
        "without object descriptions": regions["region"],
        "images and captions alone": ["data.regions=null"],
        "without box losses": ["loss.l1=0", "loss.giou=0"],
        "without matching loss": ["loss.matching=0"],
    }
    # docs/ablations.md was measured before the demo had a stem of convolutions.
    return [Sweep(demo("pretrain"), variants, overrides=("train.steps=300", "model.vision.stem=linear"), cpu=2)]


def keep_descriptions(descriptions: slice, records: Path) -> Iterator[str]:
    """Yields the lines of the records with only some of the descriptions of each box. The first description names the object
    itself ("a small green star"). The others describe it by its relation to another object, like region descriptions."""
    for line in records.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        described = [box | {"caption": box["caption"][descriptions]} for box in record["elems"]]
        boxes = [box for box in described if box["caption"]]
        if boxes:
            yield json.dumps(record | {"elems": boxes})


def adapters(_: Path) -> list[Sweep]:
    """Fine-tunes the demo for each task: all weights, low-rank adapters, and all weights except the vision and text encoders."""
    variants = {
        "all weights": [],
        "adapters of rank 8": ["optim.lora={rank: 8, lr: 3e-3}"],
        "frozen vision and text": ["optim.freeze={vision: true, text: true}"],
    }
    return [Sweep(demo(task), variants, selection_metric(task)) for task in DEMO_TASKS]


def selection_metric(task: str) -> tuple[str, ...]:
    """Returns the metric by which a run of a fine-tuning task selects its weights."""
    kind = find_task(task).load().task
    assert issubclass(kind, FineTuneTask)
    return (kind.measure,)


def pretraining(_: Path) -> list[Sweep]:
    """Fine-tunes the demo's model for each task, and a model with random weights for the same number of steps."""
    return [Sweep(demo(task), {"pre-trained": [], "from scratch": ["init.checkpoint=null"]}) for task in DEMO_TASKS]


def real(_: Path) -> list[Sweep]:
    """Fine-tunes the emoji and clip art model, only its initial encoders, and random weights, for the same number of steps."""
    metrics = {
        "retrieval": ("mean of splits image to text R@1 (cosine)", "mean of splits text to image R@1 (cosine)"),
        "grounding": ("IoU >= 0.5",),
        "captioning": ("CIDEr", "ROUGE-L"),
    }
    configs = {task: Path(f"configs/real/{task}.yaml") for task in metrics}
    return [Sweep(config, initialisations(config), metrics[task], cpu=2) for task, config in configs.items()]


def initialisations(config: Path) -> dict[str, list[str]]:
    """Returns the overrides of each initialisation of the emoji and clip art model. From random weights, all parameters train, at
    the learning rate that random parameters have in the other runs."""
    initial = read_config(Path("configs/real/pretrain.yaml")).values["init"]
    optim = read_config(config).values["optim"]
    return {
        "pre-trained": [],
        "encoders alone": ["init.checkpoint=null", *(f"init.{part}={weights}" for part, weights in initial.items())],
        "from scratch": [
            *("init.checkpoint=null", "optim.freeze=null"),
            *(f"optim.lr={optim['lr'] * optim['lr_mult']}", "optim.lr_mult=1"),
        ],
    }


def hard_negatives(_: Path) -> list[Sweep]:
    """Trains the demo's model further on captions that make a single statement, with and without hard negative texts."""
    without = ["data.images.hard_negatives=null", "data.regions.hard_negatives=null"]
    return [Sweep(demo("pretrain_composition"), {"without": without, "with": []})]


def box_sets(_: Path) -> list[Sweep]:
    """Fine-tunes the demo's model to locate phrases with the set head and, on the same phrases, with the published head, which
    uses only phrases with a single box."""
    files = {"data.train": "train", "evaluation.validation": "val", "evaluation.test.test": "test"}
    phrases = [f"{key}.annotations={SCENES}/sets_{split}.jsonl" for key, split in files.items()]
    recipe = ["train.steps=2500", "train.validate_every=500", "train.checkpoint_every=500", "optim.freeze.vision=true"]
    return [
        Sweep(demo("grounding_sets"), {"set head": []}),
        Sweep(demo("grounding"), {"published head": [*phrases, *recipe]}),
    ]


STUDIES: dict[str, Callable[[Path], list[Sweep]]] = {
    "method": method,
    "adapters": adapters,
    "pretraining": pretraining,
    "real": real,
    "hard_negatives": hard_negatives,
    "box_sets": box_sets,
}
"""The studies. Each function writes the files that its runs need to a folder, and returns the sweeps."""


def table(folder: Path, part: Sweep) -> str:
    """Returns a Markdown table of a sweep's metrics, from its results in ``folder``."""
    measured = json.loads((folder / "sweep.json").read_text(encoding="utf-8"))
    chosen = {
        name: [{metric: run[metric] for metric in (part.metrics or run) if metric in run} for run in runs]
        for name, runs in measured.items()
    }
    return table_of(chosen, max(map(len, chosen.values()))).replace("| |", f"| {part.config.stem} |", 1)


def main(
    name: Annotated[str, read_by(one_of(list(STUDIES)))],
    /,
    *overrides: Override,
    task_: tuple[str, ...] = (),
    seeds: Seeds = (0, 1, 2),
    cpu: Positive | None = None,
    output: Path = Path("runs/studies"),
) -> int:
    """Trains the alternatives of a study with several seeds, and prints a table.

    run.py sweep makes the runs, one after another; the same command resumes after an interruption. The last tables show the main
    metrics on the test split; OUTPUT/NAME/CONFIG/sweep.md and sweep.json contain all metrics of all runs. "real" needs make real,
    "method" needs make scenes, and the other studies need make demo.

    Args:
        name: method, adapters, pretraining, real, hard_negatives or box_sets.
        overrides: config values to override in all runs, such as train.steps=100.
        task_: only run the config of this name, such as retrieval; may be repeated (default: all).
        seeds: seeds of the runs.
        cpu: number of processes per run (default: 2 for pre-training and for the study "real", otherwise 1).
        output: folder of the studies.

    Examples:
        python -m benchmarks.studies method
        python -m benchmarks.studies adapters --task vqa --seeds 0,1
    """
    status, tables = 0, []
    for part in STUDIES[name](output / name):
        task = part.config.stem
        if task_ and task not in task_:
            continue
        code = one_line_errors(sweep)(
            *part.overrides,
            *overrides,
            config=str(part.config),
            variant=tuple(f"{title}: {shlex.join(changes)}" for title, changes in part.variants.items()),
            seeds=seeds,
            output=output / name / task,
            placement=Placement(cpu=cpu or part.cpu),
        )
        status = max(status, code)
        if code < 2:  # the sweep wrote a table
            tables.append(table(output / name / task, part))
    sys.stdout.write("\n".join(["", *tables]))
    return status


if __name__ == "__main__":
    sys.exit(call(main, sys.argv[1:], "python -m benchmarks.studies"))
