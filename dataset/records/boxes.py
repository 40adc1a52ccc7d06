"""Boxes with descriptions: crops and flips that also transform the boxes, and the patches that a box covers (section 3.2 of the
paper)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from dataset.broken import BrokenRecordError
from dataset.media.encoded import EncodedImage, crop
from dataset.records.schema import Box, Element, ImageRecord
from utils.image_size import ImageSize, grid_of

WHOLE_BOX: Box = (0.5, 0.5, 1.0, 1.0)
"""The whole image as a relative box: centre and size."""

SLIVER = 1e-3
"""Minimum side of a box, relative to the crop. A smaller box is not useful as a training target."""

BOX_TOLERANCE_PX = 1.0
"""Number of pixels by which a box may extend beyond its image."""

_GRID_TOLERANCE = 1e-6
"""Distance from a grid line, in patches, within which an edge of a box counts as on it."""


@dataclass(frozen=True)
class Crop:
    """A part of an image, in whole pixels: left, top, right and bottom, where right and bottom are exclusive."""

    x0: int
    y0: int
    x1: int
    y1: int

    def of(self, image: Tensor | EncodedImage) -> Tensor:
        """Returns this part of an image, (3, y1 - y0, x1 - x0) uint8."""
        return crop(image, self.y0, self.x0, self.y1 - self.y0, self.x1 - self.x0)


def elements_inside(record: ImageRecord, width: int, height: int) -> tuple[list[Element], list[BrokenRecordError]]:
    """Returns two lists: the elements whose boxes are inside the image, with boxes clamped to it, and an error for each element
    with a box outside the image. Elements without a box are in neither list."""
    elements, broken = [], []
    for element in record.elements:
        try:
            boxes = tuple(place_box(box, width, height, element.name) for box in element.boxes)
        except BrokenRecordError as error:
            broken.append(error)
        else:
            elements += [replace(element, boxes=boxes)] if boxes else []
    return elements, broken


def place_box(box: Box, width: int, height: int, name: str) -> Box:
    """Checks that a box is inside its image of ``width`` x ``height`` pixels. An excess of up to one pixel is clamped.

    Apart from the tolerance, this is the check of the authors' code: x, y >= 0; w, h > 0; x + w <= width; y + h <= height.

    Raises:
        BrokenRecordError: "degenerate box" or "box outside image".
    """
    x, y, w, h = box
    if w <= 0 or h <= 0:
        raise BrokenRecordError("degenerate box", f"{name}.bb = {list(box)} has no area")
    low, right, bottom = -BOX_TOLERANCE_PX, width + BOX_TOLERANCE_PX, height + BOX_TOLERANCE_PX
    if x < low or y < low or x + w > right or y + h > bottom:
        message = f"{name}.bb = {list(box)} (x, y, width, height) leaves the {width} x {height} image"
        raise BrokenRecordError("box outside image", message)
    x0, y0, x1, y1 = max(x, 0.0), max(y, 0.0), min(x + w, float(width)), min(y + h, float(height))
    if x1 <= x0 or y1 <= y0:
        raise BrokenRecordError("degenerate box", f"{name}.bb = {list(box)} has no area inside the image")
    return x0, y0, x1 - x0, y1 - y0


def are_relative(boxes: np.ndarray) -> bool:
    """Returns True if there are boxes (N, 4) and all their values are in [0, 1], like fractions of the image size."""
    return len(boxes) > 0 and bool(((boxes >= 0) & (boxes <= 1)).all())


def visible_elements(
    elements: Sequence[Element],
    size: tuple[int, int],
    rng: np.random.Generator,
    *,
    crop: bool,
    max_elements: int,
    min_inside: float,
) -> tuple[Crop, list[tuple[Element, list[Box]]]]:
    """Draws a crop of an image, and returns it with the elements that are visible in it.

    The crop contains all boxes of one random element, which is returned first. The other elements follow in random order, if more
    than ``min_inside`` of the area of each of their boxes is in the crop. (The authors' reader may omit the first element.)

    Args:
        elements: elements of the image, each with one or more boxes in pixels.
        size: width and height of the image.
        rng: source of randomness.
        crop: if False, the crop is the whole image.
        max_elements: maximum number of elements.
        min_inside: minimum fraction of a box's area inside the crop.

    Returns:
        The crop, and the elements with their boxes relative to it.
    """
    width, height = size
    whole = Crop(0, 0, width, height)
    if not elements:
        return whole, []
    order = rng.permutation(len(elements)).tolist()
    kept = elements[order[0]]
    part = crop_around(enclosing(kept.boxes), width, height, rng) if crop else whole
    visible: list[tuple[Element, list[Box]]] = []
    for element in (elements[index] for index in order):
        if len(visible) >= max_elements:
            break
        if all(fraction_inside(box, part) > min_inside for box in element.boxes):
            boxes = [visible_box(box, part) for box in element.boxes]
            if None not in boxes:
                visible.append((element, [box for box in boxes if box is not None]))
    return part, visible


def enclosing(boxes: Sequence[Box]) -> Box:
    """Returns the smallest box (x, y, w, h) around one or more boxes."""
    if len(boxes) == 1:
        return boxes[0]
    x, y = min(box[0] for box in boxes), min(box[1] for box in boxes)
    return x, y, max(box[0] + box[2] for box in boxes) - x, max(box[1] + box[3] for box in boxes) - y


def crop_around(box: Box, width: int, height: int, rng: np.random.Generator) -> Crop:
    """Draws a random crop that contains all of ``box`` (x, y, w, h in pixels). Each edge is uniform between the box and the image
    border."""
    x, y, w, h = box
    x0 = int(rng.integers(0, math.floor(x) + 1))
    y0 = int(rng.integers(0, math.floor(y) + 1))
    x1 = int(rng.integers(min(math.ceil(x + w), width), width + 1))
    y1 = int(rng.integers(min(math.ceil(y + h), height), height + 1))
    return Crop(x0, y0, x1, y1)


def fraction_inside(box: Box, crop: Crop) -> float:
    """Returns the fraction of the box's area that is inside the crop."""
    x, y, w, h = box
    inside_w = min(x + w, crop.x1) - max(x, crop.x0)
    inside_h = min(y + h, crop.y1) - max(y, crop.y0)
    return max(inside_w, 0.0) * max(inside_h, 0.0) / (w * h)


def visible_box(box: Box, crop: Crop) -> Box | None:
    """Returns the part of ``box`` inside ``crop`` as (cx, cy, w, h) relative to the crop, or None if it is only a sliver."""
    x, y, w, h = box
    width, height = crop.x1 - crop.x0, crop.y1 - crop.y0
    x0, x1 = (max(x, crop.x0) - crop.x0) / width, (min(x + w, crop.x1) - crop.x0) / width
    y0, y1 = (max(y, crop.y0) - crop.y0) / height, (min(y + h, crop.y1) - crop.y0) / height
    if x1 - x0 < SLIVER or y1 - y0 < SLIVER:
        return None
    return (x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0


def flip_box(box_cxcywh: Box) -> Box:
    """Mirrors a box (cx, cy, w, h, relative to the image) from left to right."""
    cx, cy, w, h = box_cxcywh
    return 1 - cx, cy, w, h


def patch_mask(box_xywh: Sequence[float], image_size: ImageSize, patch_size: int) -> Tensor:
    """Returns a mask of the patches that a box touches: (P,) bool, row-major, with at least one True.

    ``box_xywh`` is in pixels of the model's input. With patch size p, the mask covers the columns floor(x / p) up to ceil((x + w)
    / p), and rows likewise, clamped to the grid. This is the mask of the authors' code without the entry for [CLS]. An edge
    within a millionth of a patch of a grid line counts as being on the line, so that rounding in a flip or a resize does not add
    a row of patches.
    """
    rows, columns = grid_of(image_size, patch_size)
    x, y, w, h = box_xywh
    mask = torch.zeros(rows, columns, dtype=torch.bool)
    (left, right), (top, bottom) = _cells(x, w, patch_size, columns), _cells(y, h, patch_size, rows)
    mask[top:bottom, left:right] = True
    return mask.flatten()


def _cells(start: float, length: float, patch_size: int, grid: int) -> tuple[int, int]:
    first = min(max(math.floor(start / patch_size + _GRID_TOLERANCE), 0), grid - 1)
    last = min(math.ceil((start + length) / patch_size - _GRID_TOLERANCE), grid)
    return first, max(last, first + 1)
