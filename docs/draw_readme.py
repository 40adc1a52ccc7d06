"""Draws ``docs/asked.png``, the answers of the demo's model in the README: ``python docs/draw_readme.py RUN``."""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from PIL import Image

from tasks.drawing import Line
from x2vlm import figures, load
from x2vlm.search.figures import panels_of

SCENES = Path("data/scenes/images/test")
LOCATED = {
    "000001.png": ["a small pink star", "a large checked green circle"],
    "000010.png": ["the red triangle right of the cyan diamond", "a large striped cyan star"],
}
WANTED = "a large striped blue cross, a large checked green circle and a small pink star"
HEADINGS = (f"Search in 200 scenes: {WANTED}. Rank 1", "Rank 2")
SENTENCE = "a pink star and a green circle"


def main(run: str) -> None:
    model = load(run)
    with tempfile.TemporaryDirectory() as name:
        panels = []
        for scene, phrases in LOCATED.items():
            (boxes,) = model.locate([SCENES / scene], [phrases])
            panel = figures.located(model.read, str(SCENES / scene), boxes, phrases)
            panels.append(replace(panel, above=(Line("Boxes of two phrases"),)))
        index = model.index(SCENES, Path(name, "index"))
        hits = index.search(WANTED, top=2)
        panels += [
            replace(panel, above=(Line(heading),))
            for panel, heading in zip(panels_of(index, hits), HEADINGS, strict=True)
        ]
        (maps,) = figures.explained(
            model.read, str(SCENES / "000001.png"), model.explain(SCENES / "000001.png", SENTENCE), SENTENCE, 9
        )
        figures.draw(panels, Path(name, "above.png"))
        figures.draw(
            [replace(maps, above=(Line(f"Where the model looks for each word of: {SENTENCE}"),))],
            Path(name, "below.png"),
        )
        above, below = (Image.open(Path(name, f"{part}.png")).convert("RGB") for part in ("above", "below"))
        canvas = Image.new("RGB", (max(above.width, below.width), above.height + below.height), "white")
        canvas.paste(above, (0, 0))
        canvas.paste(below, (0, above.height))
        canvas.save(Path(__file__).with_name("asked.png"), optimize=True)


if __name__ == "__main__":
    main(sys.argv[1])
