"""Measures whether word maps point at the right objects: ``python -m benchmarks.word_maps --model runs/demo/pretrain-seed0``,
after ``make demo``."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from utils.commands import call
from x2vlm import load


def main(*, model_: str, records: Path = Path("data/scenes/test.jsonl"), count: int = 60) -> int:
    """Measures whether word maps point at the right objects; run make demo first.

    For each object phrase of some test scenes, the maps of its words are summed. The benchmark prints how often the maximum of
    the sum lies in the right box or within half a patch of it, and the chance level, which is the fraction of the image area that
    these boxes cover.

    Args:
        model_: a run's folder, a weight file, or an export.
        records: records of the test scenes.
        count: number of scenes.

    Examples:
        python -m benchmarks.word_maps --model runs/demo/pretrain-seed0
    """
    model = load(model_)
    hits, areas = [], []
    for line in records.read_text(encoding="utf-8").splitlines()[:count]:
        record = json.loads(line)
        view = model.read(records.parent / record["image"])
        for box in (each for each in record["elems"] if each["grain"] == "object"):
            maps = model.explain(view, box["caption"])
            hit, area = pointed_at(np.sum([each.weights for each in maps], axis=0), box["bb"], view.size)
            hits.append(hit)
            areas.append(area)
    sys.stdout.write(
        f"{len(hits)} phrases: {100 * np.mean(hits):.1f}% point at their box; chance {100 * np.mean(areas):.1f}%\n"
    )
    return 0


def pointed_at(weights: np.ndarray, box: Sequence[float], size: tuple[int, int]) -> tuple[bool, float]:
    """Returns whether the maximum of ``weights`` (rows, columns) lies in a box or within half a patch of it, and the fraction of
    the image area that counts as inside. ``box`` is x, y, width, height in pixels of an image of ``size`` (width, height)."""
    rows, columns = weights.shape
    row, column = divmod(int(weights.argmax()), columns)
    patch = size[0] / columns, size[1] / rows
    point = (column + 0.5) * patch[0], (row + 0.5) * patch[1]
    inside, area = True, 1.0
    for axis in (0, 1):
        low, high = box[axis] - patch[axis] / 2, box[axis] + box[axis + 2] + patch[axis] / 2
        inside = inside and low <= point[axis] <= high
        area *= (min(high, size[axis]) - max(low, 0)) / size[axis]
    return inside, area


if __name__ == "__main__":
    sys.exit(call(main, sys.argv[1:], "python -m benchmarks.word_maps"))
