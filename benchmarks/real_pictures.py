"""Draws predictions of the emoji and clip art model. ``python -m benchmarks.real_pictures RUN --seed 1 --out docs`` drew the
images in docs/real_model.md."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from metrics.grounding import pixel_iou
from tasks.drawing import (
    BOX_LEGEND,
    DrawnImage,
    Line,
    PairOfBoxes,
    Panel,
    Sheet,
    colours,
    draw_sheet,
    pair_of_boxes,
)
from utils.commands import call
from utils.errors import UserError
from x2vlm import load
from x2vlm.model import Model

RECORDS = Path("data/real/records")
SOURCES = ("emoji_google", "emoji_fluent", "clipart")
SIDE, PER_SOURCE, COMPOSITES, NEAREST = 240, 4, 12, 3
NAMES_LEGEND = (
    "three nearest names in the same source, by cosine · tick: the correct name · in brackets: the correct name"
)


def records(name: str) -> list[dict[str, Any]]:
    """Reads the records in a file of the real data."""
    return [json.loads(line) for line in (RECORDS / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def image_of(record: dict[str, Any]) -> Image.Image:
    """Reads the image of a record."""
    return Image.open(RECORDS / record["image"]).convert("RGB")


def resized(image: Image.Image, boxes: tuple[PairOfBoxes, ...] = ()) -> tuple[DrawnImage]:
    """Returns an image for a panel, resized to a square."""
    return (DrawnImage(np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BICUBIC)), boxes),)


def names(model: Model, choice: random.Random) -> Sheet:
    """Draws some images of each source, with the nearest names among all names of the source."""
    panels: list[Panel] = []
    for source in SOURCES:
        held_out = records(f"test_{source}")
        texts = [record["caption"] for record in held_out]
        embedded = model.embed_texts(texts)
        for record in choice.sample(held_out, PER_SOURCE):
            image = image_of(record)
            best = np.argsort(-(model.embed_images([image]) @ embedded.T)[0])[:NEAREST]
            lines = [Line(texts[place], right=texts[place] == record["caption"]) for place in best]
            panels.append(Panel(resized(image), (*lines, Line(f"({record['caption']})", faint=True))))
    return Sheet("Held-out images and their nearest names", NAMES_LEGEND, panels)


def boxes(model: Model, choice: random.Random) -> Sheet:
    """Draws some composites without stamps, with the predicted and the ground-truth box of each name."""
    stamps = {record["caption"] for record in records("test_stamps")}
    composites = records("regions_test_composites")
    free = [one for one in composites if not stamps & {part["caption"] for part in one["elems"]}]
    panels = [composite(model, record) for record in choice.sample(free, COMPOSITES)]
    return Sheet("Boxes of names in pictures of held-out objects", BOX_LEGEND, panels)


def composite(model: Model, record: dict[str, Any]) -> Panel:
    """Draws a composite with the boxes of its names."""
    image, parts = image_of(record), record["elems"]
    pairs, lines = [], []
    located = model.locate([image], [[part["caption"] for part in parts]])[0]
    for number, (part, box, colour) in enumerate(zip(parts, located, colours(len(parts)), strict=True), start=1):
        corners = {"predicted": (box.x, box.y, box.width, box.height), "true": part["bb"]}
        overlap = float(pixel_iou(*(np.array([corner]) for corner in corners.values()))[0])
        label = str(number) if len(parts) > 1 else ""
        pairs.append(pair_of_boxes(corners, image.size, colour, label))
        lines.append(Line(f"IoU {overlap:.2f} · {part['caption']}", overlap >= 0.5, (colour, label)))
    return Panel(resized(image, tuple(pairs)), tuple(lines))


def main(run: Path, /, *, seed: int = 0, out_: Path | None = None) -> int:
    """Draws predictions of the emoji and clip art model; docs/real_model.md shows two such drawings.

    real_names.png shows the nearest names of held-out images, and real_boxes.png the boxes of names in held-out composites. The
    images are chosen randomly by the seed, whether predictions are right or wrong. Stamps are excluded, because their licence
    would also apply to the drawings.

    Args:
        run: folder of a run of configs/real/pretrain.yaml.
        seed: seed for the choice of images.
        out_: folder of the drawings (default: RUN).

    Examples:
        python -m benchmarks.real_pictures RUN --seed 1 --out docs
    """
    if not RECORDS.is_dir():
        raise UserError(f"{RECORDS} does not exist", remedy="docs/real_model.md describes how to make it")
    model = load(run)
    out = out_ or run
    out.mkdir(parents=True, exist_ok=True)
    for name, sheet in (("names", names), ("boxes", boxes)):
        draw_sheet(sheet(model, random.Random(seed)), out / f"real_{name}.png")
    return 0


if __name__ == "__main__":
    sys.exit(call(main, sys.argv[1:], "python -m benchmarks.real_pictures"))
