"""Ablation of the paper's method on the demo: ``python -m benchmarks.ablation``, after ``make scenes``."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

from commands.sweep import sweep
from launch.placement import Placement
from tools.reproduce.runs import Seeds
from utils.commands import call
from utils.files import write_text

SCENES = Path("data/scenes")


def keep_descriptions(descriptions: slice, records: Path) -> Iterator[str]:
    """Yields the lines of the records with only some of the descriptions of each box. The first description names the object
    itself ("a small green star"). The others describe it by its relation to another object, like region descriptions."""
    for line in records.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        described = [box | {"caption": box["caption"][descriptions]} for box in record["elems"]]
        boxes = [box for box in described if box["caption"]]
        if boxes:
            yield json.dumps(record | {"elems": boxes})


def variants(folder: Path) -> dict[str, list[str]]:
    """Returns the overrides of each variant, by name. Writes the records that the variants need to the folder."""
    regions: dict[str, list[str]] = {}
    for name, descriptions in {"object": slice(0, 1), "region": slice(1, None)}.items():
        path = folder / f"{name}_descriptions.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, "".join(f"{line}\n" for line in keep_descriptions(descriptions, SCENES / "train.jsonl")))
        regions[name] = [f"data.regions.files=[{path}]", f"data.regions.image_root={SCENES}"]
    return {
        "all": [],
        "without region descriptions": regions["object"],
        "without object descriptions": regions["region"],
        "images and captions alone": ["data.regions=null"],
        "without box losses": ["loss.l1=0", "loss.giou=0"],
        "without matching loss": ["loss.matching=0"],
    }


def main(*, steps: int = 300, seeds: Seeds = (0, 1, 2), output: Path = Path("runs/ablation")) -> int:
    """Ablation of the paper's method on the demo; run make scenes first.

    The demo is trained for 300 steps, first unchanged and then without one component of the method at a time: region
    descriptions, object descriptions, both, the box losses, the matching loss. run.py sweep starts the runs and prints the table;
    docs/ablations.md shows the results.

    Args:
        steps: number of steps per run.
        seeds: seeds of the runs.
        output: folder of the runs.

    Examples:
        python -m benchmarks.ablation
    """
    return sweep(
        f"train.steps={steps}",
        "model.vision.stem=linear",  # docs/ablations.md was measured before the demo had a stem of convolutions
        config="configs/demo/pretrain.yaml",
        variant=tuple(f"{name}: {' '.join(overrides)}" for name, overrides in variants(output).items()),
        seeds=seeds,
        output=output,
        placement=Placement(cpu=2),
    )


if __name__ == "__main__":
    sys.exit(call(main, sys.argv[1:], "python -m benchmarks.ablation"))
