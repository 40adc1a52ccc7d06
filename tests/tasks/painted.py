"""Fine-tuning data of 16 painted images, and tasks on them."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tasks.evaluation import Evaluation
from tasks.inference import evaluating
from tasks.kinds import find_task
from utils.config import load_config

ROOT = Path(__file__).parent.parent.parent
KINDS = {name: find_task(name).load() for name in ("retrieval", "nlvr", "grounding", "vqa", "captioning")}
FILES = {"vqa": "questions"}
"""The key that names a split's file, if it is not `annotations`."""
COLOURS = {"red": (220, 30, 30), "blue": (30, 30, 220), "green": (30, 200, 30), "yellow": (220, 220, 30)}
LOOKS = list(itertools.product(COLOURS, ("small", "large"), ("star", "circle")))
SIZE = 32


def write_pictures(folder: Path) -> None:
    """Writes grey images with one square each. Image n has the n-th colour, and the square's position and size depend on the n-th
    size and shape."""
    folder.mkdir()
    for number, (colour, size, shape) in enumerate(LOOKS):
        pixels = np.full((SIZE, SIZE, 3), 128, dtype=np.uint8)
        x, y, side = box_of(size, shape)
        pixels[y : y + side, x : x + side] = COLOURS[colour]
        Image.fromarray(pixels).save(folder / f"{number}.png")


def box_of(size: str, shape: str) -> tuple[int, int, int]:
    return (2, 3, 8 if size == "small" else 20) if shape == "star" else (10, 9, 6 if size == "small" else 18)


def rows_of(task: str, numbers: range) -> list[dict[str, Any]]:
    """Annotations of a split for some of the images."""
    rows: list[dict[str, Any]] = []
    for number in numbers:
        colour, size, shape = LOOKS[number]
        image, text = f"images/{number}.png", f"a {size} {colour} {shape}"
        if task in ("retrieval", "captioning"):
            captions = [text, f"the {shape} is {colour} and {size}", f"{colour} {shape}"][: 1 + number % 3]
            rows.append({"image": image, "caption": captions, "image_id": number})
        elif task == "grounding":
            x, y, side = box_of(size, shape)
            elem = {"bb": [x, y, side, side], "caption": text, "grain": ("attribute", "place")[number % 2]}
            rows.append({"image": image, "elems": [elem]})
        elif task == "vqa":
            other = "yes" if number % 2 else "no"
            asked = {"image": image, "question_id": 2 * number, "question": f"what colour is the {shape}?"}
            rows.append({**asked, "answer": [colour] * 10, "answer_type": "other"})
            asked = {"image": image, "question_id": 2 * number + 1, "question": f"is there a {size} {shape}?"}
            rows.append({**asked, "answer": ["yes"] * 7 + [other] * 3, "answer_type": "yes/no"})
        else:
            for pair, other in enumerate((number, (number + 1) % len(LOOKS))):
                names = [image, f"images/{other}.png"]
                sentence = f"both pictures have {text}"
                rows.append(
                    {
                        "sentence": sentence,
                        "label": pair == 0,
                        "images": names,
                        "identifier": f"dev-{number}-{pair}-0",
                    }
                )
    return rows


def task_of(name: str, overrides: Callable[[str], list[str]]) -> Any:
    schema, kind, *_ = KINDS[name]
    return kind.build(load_config(ROOT / f"configs/demo/{name}.yaml", overrides(name), schema))


def measured(task: Any) -> Evaluation:
    with evaluating(task.model, "fp32"):
        return task.evaluate(task.held_out.test["test"])
