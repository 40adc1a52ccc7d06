"""Simple drawings with questions, as a user might bring them: ``python -m tests.demo.simple_drawings data/drawings``.

Each drawing shows one shape on a plain background. Unlike the demo's scenes, it is drawn with Pillow, in other shades, without
textures, and in any orientation.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from utils.commands import call
from utils.flags import Positive

SIDE = 96
"""Height and width of a drawing in pixels."""

RADII = {
    "circle": [1.0] * 60,
    "square": [1.0] * 4,
    "triangle": [1.0] * 3,
    "star": [1.0, 0.45] * 5,
}
"""Distance of each corner of a shape from its centre, relative to the largest. The corners have equal angles between them."""

COLOURS = {"red": (200, 30, 30), "green": (20, 140, 50), "blue": (40, 60, 200), "yellow": (235, 205, 30)}


def draw(shape: str, colour: str, rng: np.random.Generator) -> Image.Image:
    """Draws a shape of a random size at a random place, in a random orientation."""
    scale = 4  # drawn larger and reduced, for smooth edges
    image = Image.new("RGB", (scale * SIDE, scale * SIDE), tuple(rng.integers(225, 256, 3).tolist()))
    size = rng.uniform(0.2, 0.4) * SIDE
    x, y = rng.uniform(size, SIDE - size, 2)
    turn = rng.uniform(0, 2 * math.pi)
    radii = RADII[shape]
    corners = [
        (scale * (x + size * radius * math.cos(angle)), scale * (y + size * radius * math.sin(angle)))
        for index, radius in enumerate(radii)
        for angle in [turn + 2 * math.pi * index / len(radii)]
    ]
    fill = np.clip(np.array(COLOURS[colour]) + rng.integers(-20, 21, 3), 0, 255)
    ImageDraw.Draw(image).polygon(corners, fill=tuple(fill.tolist()))
    return image.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def questions_about(shape: str, colour: str, rng: np.random.Generator) -> list[tuple[str, str, str]]:
    """Returns (question, answer, type of answer). Half of the yes/no questions are answered with yes."""

    def asked(right: str, names: list[str]) -> tuple[str, str]:
        wrong = [name for name in names if name != right]
        return (right, "yes") if rng.random() < 0.5 else (str(rng.choice(wrong)), "no")

    named_colour, is_colour = asked(colour, list(COLOURS))
    named_shape, is_shape = asked(shape, list(RADII))
    return [
        ("what colour is it?", colour, "colour"),
        ("what shape is it?", shape, "shape"),
        (f"is it {named_colour}?", is_colour, "yes/no: colour"),
        (f"is it a {named_shape}?", is_shape, "yes/no: shape"),
    ]


def main(out: Path, /, *, train: Positive = 1500, val: Positive = 150, test: Positive = 300, seed: int = 0) -> int:
    """Draws simple shapes, and writes four questions about each of them.

    Args:
        out: folder for images/ and questions_{train,val,test}.jsonl.
        train: number of training drawings.
        val: number of validation drawings.
        test: number of test drawings.
        seed: seed of the drawings and of the questions.
    """
    (out / "images").mkdir(parents=True, exist_ok=True)
    for number, (split, count) in enumerate({"train": train, "val": val, "test": test}.items()):
        rng, records = np.random.default_rng([seed, number]), []
        for index in range(count):
            shape, colour = str(rng.choice(list(RADII))), str(rng.choice(list(COLOURS)))
            image = f"images/{split}_{index}.png"
            draw(shape, colour, rng).save(out / image)
            for question, answer, kind in questions_about(shape, colour, rng):
                records.append({"image": image, "question": question, "answer": answer, "answer_type": kind})
        (out / f"questions_{split}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return 0


if __name__ == "__main__":
    sys.exit(call(main, sys.argv[1:], "python -m tests.demo.simple_drawings"))
