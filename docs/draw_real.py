"""Draws ``docs/real_names.png`` and ``docs/real_boxes.png``: ``python docs/draw_real.py RUN [SEED]``.

RUN is a run of configs/real/pretrain.yaml; SEED chooses the held-out pictures, right or wrong. Stamps are left out, whose licence
would be that of the drawings too.
"""

import json
import random
import sys
import textwrap
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from x2vlm import load

RECORDS = Path("data/real/records")
SOURCES = ("emoji_google", "emoji_fluent", "clipart")
SIDE, GAP, COLUMNS, LETTERS = 168, 16, 6, 24
INK, GREY, GREEN, PAPER = "#1f2933", "#7b8794", "#1b7f3b", "white"
COLOURS = ("#d62728", "#1f77b4", "#2ca02c", "#9467bd")


def records(name):
    return [json.loads(line) for line in (RECORDS / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def sheet(panels):
    """Draw pictures, each with lines of text and their colours."""
    font = ImageFont.load_default(13)
    wrapped = [
        [(line, colour) for text, colour in lines for line in textwrap.wrap(text, LETTERS)] for _, lines in panels
    ]
    height = SIDE + 16 * max(map(len, wrapped)) + GAP
    canvas = Image.new("RGB", (COLUMNS * (SIDE + GAP) + GAP, -(-len(panels) // COLUMNS) * (height + GAP) + GAP), PAPER)
    pen = ImageDraw.Draw(canvas)
    for place, ((picture, _), lines) in enumerate(zip(panels, wrapped, strict=True)):
        x, y = GAP + place % COLUMNS * (SIDE + GAP), GAP + place // COLUMNS * (height + GAP)
        canvas.paste(picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC), (x, y))
        y += SIDE + 6
        for line, colour in lines:
            pen.text((x, y), line, colour, font)
            y += 16
    return canvas


def names(model, draw):
    """Four pictures of each source, the three nearest of all names of the source by cosine, and in grey the true one."""
    panels = []
    for source in SOURCES:
        held_out = records(f"test_{source}")
        texts = [record["caption"] for record in held_out]
        embedded = model.embed_texts(texts)
        for record in draw.sample(held_out, 4):
            picture = Image.open(RECORDS / record["image"]).convert("RGB")
            best = np.argsort(-(model.embed_images([picture]) @ embedded.T)[0])[:3]
            lines = [
                (f"{rank}. {texts[one]}", GREEN if texts[one] == record["caption"] else INK)
                for rank, one in enumerate(best, 1)
            ]
            panels.append((picture, [*lines, (f"({record['caption']})", GREY)]))
    return sheet(panels)


def boxes(model, draw):
    """Twelve composites without stamps; the predicted box of each name."""
    stamps = {record["caption"] for record in records("test_stamps")}
    free = [
        one for one in records("regions_test_composites") if not stamps & {part["caption"] for part in one["elems"]}
    ]
    panels = []
    for record in draw.sample(free, 12):
        picture = Image.open(RECORDS / record["image"]).convert("RGB")
        phrases = [part["caption"] for part in record["elems"]]
        found, pen = model.locate([picture], [phrases])[0], ImageDraw.Draw(picture)
        for box, colour in zip(found, COLOURS, strict=False):
            pen.rectangle((box.x, box.y, box.x + box.width, box.y + box.height), outline=colour, width=3)
        panels.append((picture, list(zip(phrases, COLOURS, strict=False))))
    return sheet(panels)


def main(run: Path, seed: int) -> None:
    model = load(run)
    for name, drawn in (("names", names), ("boxes", boxes)):
        drawn(model, random.Random(seed)).save(Path(__file__).with_name(f"real_{name}.png"), optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
