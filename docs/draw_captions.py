"""Draws ``docs/captions.png``, the ten generated captions in the README: ``python docs/draw_captions.py RUN [SEED]``.

RUN is the folder of a finished captioning run of the demo. SEED determines which ten test scenes are drawn.
"""

import json
import random
import sys
import textwrap
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

SIDE, GAP, COLUMNS, LINES = 224, 16, 5, 8
INK, GREY, PAPER = "#1f2933", "#7b8794", "white"


def main(run: Path, seed: int) -> None:
    predictions = json.loads((run / "predictions_test.json").read_text(encoding="utf-8"))
    scenes = Path("data/scenes")
    lines = (scenes / "captioning_test.jsonl").read_text(encoding="utf-8").splitlines()
    records = {record["image_id"]: record for record in map(json.loads, lines)}
    chosen = random.Random(seed).sample(predictions, 10)
    font = ImageFont.load_default(13)
    height = SIDE + 17 * LINES + GAP
    rows = -(-len(chosen) // COLUMNS)
    canvas = Image.new("RGB", (COLUMNS * (SIDE + GAP) + GAP, rows * (height + GAP) + GAP), PAPER)
    pen = ImageDraw.Draw(canvas)
    for index, prediction in enumerate(chosen):
        record = records[prediction["image_id"]]
        x, y = GAP + index % COLUMNS * (SIDE + GAP), GAP + index // COLUMNS * (height + GAP)
        with Image.open(scenes / record["image"]) as picture:
            canvas.paste(picture.resize((SIDE, SIDE), Image.Resampling.NEAREST), (x, y))
        y += SIDE + 6
        for text, colour in ((prediction["caption"], INK), (f"({record['caption'][0]})", GREY)):
            for line in textwrap.wrap(text, 34):
                pen.text((x, y), line, colour, font)
                y += 16
            y += 4
    canvas.save(Path(__file__).with_name("captions.png"), optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
