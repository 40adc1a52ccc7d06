"""Draws a model's results: captions and answers below images, the boxes of phrases, and the attention maps of words."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image as PILImage
from torch.nn.functional import interpolate

from tasks.drawing import DrawnImage, Line, Panel, Sheet, colours, draw_sheet
from tasks.drawing.boxes import PairOfBoxes, draw_boxes
from x2vlm.attention import WordMap
from x2vlm.inputs import Image, Reader
from x2vlm.model import Box, Judgement

MAP_SIDE = 150
"""Maximum length, in pixels, of the longer side of an image that is drawn with the map of a word."""
HEAT = np.array([(0, 0, 90), (20, 90, 220), (60, 200, 150), (250, 220, 50), (220, 30, 30)], dtype=np.float32)
"""Colours of a map from 0 to its maximum weight."""
IMAGE_OPACITY = 0.5
"""Opacity of an image under its map."""


def draw(panels: Sequence[Panel], path: str | Path, title: str = "", legend: str = "") -> Path:
    """Writes panels as a PNG."""
    draw_sheet(Sheet(title, legend, panels), Path(path))
    return Path(path)


def described(read: Reader, image: Image, lines: Sequence[str]) -> Panel:
    """Returns a panel: an image with its name above it and lines of text below it."""
    return Panel((DrawnImage(read.picture(image)),), tuple(map(Line, lines)), _names([image]))


def located(read: Reader, image: Image, boxes: Sequence[Box], phrases: Sequence[str]) -> Panel:
    """Returns a panel: an image with the boxes of phrases and, below the image, the phrases with their scores, in the colours of
    their boxes."""
    picture, (width, height) = read.picture(image), read(image).size
    drawn, lines = [], []
    different = list(dict.fromkeys(phrases))
    for number, (phrase, colour) in enumerate(zip(different, colours(len(different)), strict=True), start=1):
        key = "" if len(different) == 1 else str(number)
        phrase_boxes = [box for box in boxes if box.phrase == phrase]
        for box in phrase_boxes:
            relative = (box.x / width, box.y / height, box.width / width, box.height / height)
            drawn.append(PairOfBoxes(relative, None, colour, key))
        scores = ", ".join(f"{box.score:.2f}" for box in phrase_boxes if box.score is not None)
        label = " · ".join(filter(None, [phrase, scores if phrase_boxes else "no box"]))
        lines.append(Line(label, key=(colour, key) if phrase_boxes else None))
    return Panel((DrawnImage(picture, tuple(drawn)),), tuple(lines), _names([image]))


def marked(read: Reader, image: Image, box: Box | None) -> np.ndarray:
    """Returns an image (H, W, 3) uint8 with a box, if one is given."""
    picture = PILImage.fromarray(read.picture(image))
    if box is not None:
        width, height = read(image).size
        relative = (box.x / width, box.y / height, box.width / width, box.height / height)
        draw_boxes(picture, (PairOfBoxes(relative, None, colours(1)[0]),))
    return np.asarray(picture)


def compared(read: Reader, images: Sequence[Image], statement: str, judgement: Judgement) -> Panel:
    """Returns a panel: images side by side, with a statement about them and the model's judgement."""
    pictures = tuple(DrawnImage(read.picture(image, 240)) for image in images)
    lines = (Line(statement), Line(f"{judgement.label} · {judgement.score:.2f}"))
    return Panel(pictures, lines, _names(images))


def explained(read: Reader, image: Image, maps: Sequence[WordMap], text: str, across: int = 6) -> list[Panel]:
    """Returns panels: first the image with its name and the text, then the image with the map of each word. All maps have the
    same scale."""
    largest = max(float(each.weights.max()) for each in maps) or 1.0
    picture = read.picture(image, MAP_SIDE)
    drawn = [
        DrawnImage(picture),
        *(DrawnImage(overlaid(picture, each.weights / largest), label=each.word) for each in maps),
    ]
    above = (*_names([image]), Line(text))
    return [Panel(tuple(drawn[at : at + across]), (), above if at == 0 else ()) for at in range(0, len(drawn), across)]


def _names(images: Sequence[Image]) -> tuple[Line, ...]:
    """Returns the file names to show above a panel; empty for images without a name."""
    names = [Path(image).name for image in images if isinstance(image, str | Path)]
    return (Line(", ".join(names), faint=True),) if names else ()


def overlaid(picture: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Returns a picture (H, W, 3) overlaid with a map of ``weights`` (rows, columns) in 0..1."""
    grid = torch.from_numpy(np.ascontiguousarray(weights, dtype=np.float32))[None, None]
    smooth = interpolate(grid, picture.shape[:2], mode="bicubic", align_corners=False)[0, 0].clamp(0, 1).numpy()
    stops = np.linspace(0, 1, len(HEAT))
    heat: Any = np.stack([np.interp(smooth, stops, HEAT[:, channel]) for channel in range(3)], axis=2)
    return (IMAGE_OPACITY * picture + (1 - IMAGE_OPACITY) * heat).round().astype(np.uint8)
