"""The paper's claim in small: ``python -m benchmarks.ablation``, after ``make scenes``."""

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


def only(descriptions: slice, records: Path) -> Iterator[str]:
    """Lines of the records, of whose boxes only some descriptions are left: the first is of the object itself ("a small green
    star"), the others tell it by its relation to another one, as region descriptions do."""
    for line in records.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        described = [box | {"caption": box["caption"][descriptions]} for box in record["elems"]]
        boxes = [box for box in described if box["caption"]]
        if boxes:
            yield json.dumps(record | {"elems": boxes})


def variants(folder: Path) -> dict[str, list[str]]:
    """The overrides of each variant, by its name; writes the records that they need into the folder."""
    regions: dict[str, list[str]] = {}
    for name, descriptions in {"object": slice(0, 1), "region": slice(1, None)}.items():
        path = folder / f"{name}_descriptions.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, "".join(f"{line}\n" for line in only(descriptions, SCENES / "train.jsonl")))
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
    """The paper's claim in small, after make scenes.

    The demo is trained for 300 steps as it is, and without one part of the method each: region descriptions, object descriptions,
    both, the box losses, the matching loss. run.py sweep makes the runs and the table; docs/ablations.md has the numbers.

    Args:
        steps: steps of a run.
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
