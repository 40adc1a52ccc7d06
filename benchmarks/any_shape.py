"""Compares runs whose images keep their aspect ratio with runs whose images are resized to a square:
``python -m benchmarks.any_shape RUN RUN [RUN …]`` (docs/ablations.md)."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.harness import print_line
from benchmarks.real_sources import mean_and_spread
from engine.run_files import CONFIG_FILE, EVALUATION_FILE
from metrics.bootstrap import Scores, interval
from metrics.grounding import iou
from tasks.config import PretrainConfig
from utils.commands import call
from utils.config import load_config
from utils.errors import UserError
from utils.files import read_json
from utils.image_size import NativeSize
from x2vlm import load

STRETCHED = 2.0
"""Ratio of the longer side of an image to the shorter one from which its objects count as stretched."""

SMALL = 1 / 32
"""Fraction of the area of the image up to which a box counts as small: the area of two of 64 patches."""


@dataclass(frozen=True)
class Phrase:
    """A phrase of a held-out image.

    Attributes:
        image: file of the image.
        text: the phrase.
        box: x, y, width and height of its box in pixels.
        size: width and height of the image in pixels.
    """

    image: Path
    text: str
    box: tuple[float, float, float, float]
    size: tuple[int, int]

    @property
    def is_stretched(self) -> bool:
        return max(self.size) >= STRETCHED * min(self.size)

    @property
    def is_small(self) -> bool:
        return self.box[2] * self.box[3] <= SMALL * self.size[0] * self.size[1]


GROUPS: dict[str, Callable[[Phrase], bool]] = {
    "all boxes": lambda phrase: True,
    f"boxes in images from {STRETCHED:g}:1": lambda phrase: phrase.is_stretched,
    "boxes in other images": lambda phrase: not phrase.is_stretched,
    "small boxes": lambda phrase: phrase.is_small,
    f"small boxes in images from {STRETCHED:g}:1": lambda phrase: phrase.is_small and phrase.is_stretched,
}


def phrases_of(records: Path) -> list[Phrase]:
    """Reads the object phrases of drawn scenes."""
    phrases = []
    for line in records.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        path = records.parent / record["image"]
        with Image.open(path) as image:
            size = image.size
        phrases += [
            Phrase(path, each["caption"], tuple(each["bb"]), size)
            for each in record["elems"]
            if each["grain"] == "object"
        ]
    return phrases


def overlaps(model: Any, phrases: Sequence[Phrase], *, letterboxed: bool) -> np.ndarray:
    """Locates P phrases, and returns the IoU of each predicted box, (P,).

    Args:
        model: a loaded model that locates phrases.
        phrases: the phrases; those of an image follow one another.
        letterboxed: whether to pad each image to a square with grey bars.
    """
    predicted, true = [], []
    for path, group in itertools.groupby(phrases, key=lambda phrase: phrase.image):
        of_image, left, top = list(group), 0, 0
        with Image.open(path) as image:
            picture = image.convert("RGB")
        if letterboxed:
            side = max(picture.size)
            left, top = (side - picture.width) // 2, (side - picture.height) // 2
            square = Image.new("RGB", (side, side), "grey")
            square.paste(picture, (left, top))
            picture = square
        for phrase, box in zip(of_image, model.locate(picture, [phrase.text for phrase in of_image])[0], strict=True):
            predicted.append((box.x - left + box.width / 2, box.y - top + box.height / 2, box.width, box.height))
            x, y, width, height = phrase.box
            true.append((x + width / 2, y + height / 2, width, height))
    return iou(np.array(predicted), np.array(true))


def main(runs: list[Path], /) -> int:
    """Compares runs whose images keep their aspect ratio with runs whose images are resized to a square.

    The objects of the held-out scenes are located in the images as they are, and letterboxed to squares. The table shows the
    means over the runs of each kind; the differences have 95% intervals over images.

    Args:
        runs: folders of pre-training runs on scenes of several shapes, with the same seeds for both kinds.

    Examples:
        python -m benchmarks.any_shape RUN RUN [RUN …]
    """
    configs = [load_config(run / CONFIG_FILE, [], PretrainConfig) for run in runs]
    kinds: dict[str, list[tuple[Path, PretrainConfig]]] = {"fixed": [], "native": []}
    for run, config in zip(runs, configs, strict=True):
        kinds["native" if isinstance(config.model.vision.image_size, NativeSize) else "fixed"].append((run, config))
    seeds = {kind: sorted(config.seed for _, config in members) for kind, members in kinds.items()}
    if not seeds["fixed"] or seeds["fixed"] != seeds["native"]:
        raise UserError(
            f"the runs with a fixed size have the seeds {seeds['fixed']}, the others {seeds['native']}",
            remedy="pass the same seeds for both kinds",
        )
    for members in kinds.values():
        members.sort(key=lambda member: member[1].seed)
    evaluation = configs[0].evaluation
    assert evaluation is not None
    phrases = phrases_of(Path(evaluation.files[0]))
    images = [str(phrase.image) for phrase in phrases]
    print_line("| % | measured | " + " | ".join(kinds) + " | native minus fixed |\n|---|---|---|---|---|")
    metrics = {kind: [read_json(run / EVALUATION_FILE)["held-out"] for run, _ in kinds[kind]] for kind in kinds}
    for name in (name for name in metrics["fixed"][0] if "R@1" in name):
        values = {kind: [each[name]["value"] for each in metrics[kind]] for kind in kinds}
        gain = 100 * (np.mean(values["native"]) - np.mean(values["fixed"]))
        print_line(
            f"| {name} | | {mean_and_spread(values['fixed'])} | {mean_and_spread(values['native'])} | {gain:+.1f} |"
        )
    for letterboxed in (False, True):
        hits = {
            kind: np.array([overlaps(load(run), phrases, letterboxed=letterboxed) >= 0.5 for run, _ in members])
            for kind, members in kinds.items()
        }
        for name, belongs in GROUPS.items():
            chosen = np.array([belongs(phrase) for phrase in phrases])
            if not chosen.any():
                continue
            means = {kind: mean_and_spread(each[:, chosen].mean(axis=1).tolist()) for kind, each in hits.items()}
            gains = hits["native"][:, chosen].mean(axis=0) - hits["fixed"][:, chosen].mean(axis=0)
            groups = [image for image, each in zip(images, chosen, strict=True) if each]
            low, high = interval([Scores(gains, groups)], draws=10_000, seed=0) or (np.nan, np.nan)
            name += ", letterboxed" if letterboxed else ""
            gain = f"{100 * gains.mean():+.1f} [{100 * low:.1f}, {100 * high:.1f}]"
            print_line(f"| {name} | {int(chosen.sum())} | {means['fixed']} | {means['native']} | {gain} |")
    return 0


if __name__ == "__main__":
    sys.exit(call(main, sys.argv[1:], "python -m benchmarks.any_shape"))
