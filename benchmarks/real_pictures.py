"""Draws ``docs/real_names.png`` and ``docs/real_boxes.png``: ``python -m benchmarks.real_pictures RUN --seed 1``.

RUN is a run of configs/real/pretrain.yaml. The seed chooses the held-out pictures, right or wrong. Stamps are left out, whose
licence would be that of the drawings too.
"""

from __future__ import annotations

import argparse
import json
import random
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from x2vlm import load
from x2vlm.model import Model

RECORDS = Path("data/real/records")
SOURCES = ("emoji_google", "emoji_fluent", "clipart")
SIDE, GAP, COLUMNS, LETTERS = 168, 16, 6, 24
INK, GREY, GREEN, PAPER = "#1f2933", "#7b8794", "#1b7f3b", "white"
COLOURS = ("#d62728", "#1f77b4", "#2ca02c", "#9467bd")
Panel = tuple[Image.Image, list[tuple[str, str]]]
"""A picture, and texts below it with their colours."""


def records(name: str) -> list[dict[str, Any]]:
    """The records of a file of the real data."""
    return [json.loads(line) for line in (RECORDS / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def sheet(panels: Sequence[Panel]) -> Image.Image:
    """All panels in rows, whose height is that of the longest texts."""
    font = ImageFont.load_default(13)
    wrapped = [
        [(line, colour) for text, colour in texts for line in textwrap.wrap(text, LETTERS)] for _, texts in panels
    ]
    height = SIDE + 16 * max(map(len, wrapped)) + GAP
    canvas = Image.new("RGB", (COLUMNS * (SIDE + GAP) + GAP, -(-len(panels) // COLUMNS) * (height + GAP) + GAP), PAPER)
    pen = ImageDraw.Draw(canvas)
    for place, ((picture, _), lines) in enumerate(zip(panels, wrapped, strict=True)):
        x, y = GAP + place % COLUMNS * (SIDE + GAP), GAP + place // COLUMNS * (height + GAP)
        canvas.paste(picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC), (x, y))
        for number, (line, colour) in enumerate(lines):
            pen.text((x, y + SIDE + 6 + 16 * number), line, colour, font)
    return canvas


def names(model: Model, draw: random.Random) -> list[Panel]:
    """Four pictures of each source, the three nearest of all names of the source by cosine, and in grey the true one."""
    panels: list[Panel] = []
    for source in SOURCES:
        held_out = records(f"test_{source}")
        texts = [record["caption"] for record in held_out]
        embedded = model.embed_texts(texts)
        for record in draw.sample(held_out, 4):
            picture = Image.open(RECORDS / record["image"]).convert("RGB")
            best = np.argsort(-(model.embed_images([picture]) @ embedded.T)[0])[:3]
            lines = [
                (f"{rank}. {texts[one]}", GREEN if texts[one] == record["caption"] else INK)
                for rank, one in enumerate(best, start=1)
            ]
            panels.append((picture, [*lines, (f"({record['caption']})", GREY)]))
    return panels


def boxes(model: Model, draw: random.Random) -> list[Panel]:
    """Twelve composites without stamps; the predicted box of each name."""
    stamps = {record["caption"] for record in records("test_stamps")}
    composites = records("regions_test_composites")
    free = [one for one in composites if not stamps & {part["caption"] for part in one["elems"]}]
    panels: list[Panel] = []
    for record in draw.sample(free, 12):
        picture = Image.open(RECORDS / record["image"]).convert("RGB")
        phrases = [part["caption"] for part in record["elems"]]
        found, pen = model.locate([picture], [phrases])[0], ImageDraw.Draw(picture)
        colours = COLOURS[: len(phrases)]
        for box, colour in zip(found, colours, strict=True):
            pen.rectangle((box.x, box.y, box.x + box.width, box.y + box.height), outline=colour, width=3)
        panels.append((picture, list(zip(phrases, colours, strict=True))))
    return panels


def main(argv: Sequence[str] | None = None) -> int:
    """Draw both sheets; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", metavar="RUN")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("docs"), metavar="DIR")
    flags = parser.parse_args(argv)
    model = load(flags.run)
    for name, panels in (("names", names), ("boxes", boxes)):
        sheet(panels(model, random.Random(flags.seed))).save(flags.out / f"real_{name}.png", optimize=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
