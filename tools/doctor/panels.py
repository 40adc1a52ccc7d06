"""Draws a batch as panels: its pixels, its boxes, and its texts, which are decoded from their token ids."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from batches.base import IGNORE
from batches.captioning import LeftToRightText
from batches.images import NativeImages, Pixels
from batches.pretraining import PretrainBatch, RegionBatch
from batches.texts import MaskedText, Text
from models.config import PUBLISHED_PIXELS
from tasks.drawing import DrawnImage, Line, PairOfBoxes, Panel, colours
from tasks.drawing.images import fitted

MAX_PANELS, MAX_LINES = 4, 8


LEGEND = "«in quotes»: masked, or to predict · a number: the box of this text · wrong: a hard negative"
SIDE = 224
"""Maximum length of the longer side of an image, in pixels."""


def panels_of(batch: Any, tokenizer: Any, classes: Mapping[int, str] | None = None) -> list[Panel]:
    """Returns panels for the first examples of each stream in a batch. If the batch has an unknown class, the panels show the
    batch's fields ``pixels``, ``text`` and ``boxes_cxcywh``.

    Args:
        classes: maps labels to their names, if known.
    """
    if isinstance(batch, PretrainBatch):
        return [panel for name, part in batch.by_stream().items() for panel in _of_stream(name, part, tokenizer, {})]
    return list(_of_stream("", batch, tokenizer, classes or {}))


def _of_stream(name: str, part: Any, tokenizer: Any, classes: Mapping[int, str]) -> Iterator[Panel]:
    if isinstance(part, RegionBatch):
        yield from _of_regions(name, part, tokenizer)
        return
    text, pixels = getattr(part, "text", None), getattr(part, "pixels", None)
    valid = getattr(part, "valid", None)
    count = len(valid) if isinstance(valid, Tensor) else (0 if pixels is None else len(pixels))
    boxes, present, shared = (getattr(part, name, None) for name in ("boxes_cxcywh", "present", "image_of_question"))
    if pixels is not None and isinstance(shared, Tensor):
        pixels = pixels[shared[:MAX_PANELS]]
    for row in range(min(count, MAX_PANELS)):
        images = [] if pixels is None else images_of(pixels, row, count)
        own = _boxes_of(row, boxes, present) if isinstance(boxes, Tensor) else ()
        lines = lines_of(text, row, tokenizer, own[0] if own else None)
        lines += _wrong_lines(part, row, tokenizer) + _other_lines(part, row, tokenizer, classes)
        if isinstance(valid, Tensor) and not valid[row]:
            lines.append(Line("(does not count)", faint=True))
        yield _panel(f"{name} {row}".strip(), images, own, lines)


def _boxes_of(row: int, boxes: Tensor, present: Tensor | None) -> tuple[PairOfBoxes, ...]:
    """Returns the boxes of an example, which has one text.

    Args:
        boxes: (N, 4), or (N, M, 4) with ``present`` (N, M) bool.
    """
    if present is None:
        return drawn_boxes(boxes[row : row + 1])
    own = drawn_boxes(boxes[row][present[row]])
    return tuple(replace(box, colour=own[0].colour, number=own[0].number) for box in own)


def _of_regions(name: str, part: RegionBatch, tokenizer: Any) -> Iterator[Panel]:
    for image in range(min(len(part.pixels), MAX_PANELS)):
        rows = [row for row in torch.nonzero(part.image_index == image).flatten().tolist() if part.valid[row]]
        rows = rows[:MAX_LINES]
        if not rows:  # such as an image without a long caption
            continue
        with_box = [row for row in rows if not (part.is_image[row] or part.several_boxes[row])]
        boxes = dict(zip(with_box, drawn_boxes(part.boxes_cxcywh[with_box]), strict=True))
        lines = [
            line
            for row in rows
            for line in (*lines_of(part.text, row, tokenizer, boxes.get(row)), *_wrong_lines(part, row, tokenizer))
        ]
        images = images_of(part.pixels, image, len(part.pixels))
        yield _panel(f"{name} {image}", images, tuple(boxes.values()), lines)


def _panel(title: str, images: Sequence[np.ndarray], boxes: tuple[PairOfBoxes, ...], lines: Sequence[Line]) -> Panel:
    """Returns a panel with images side by side, and boxes on the first image."""
    pictures = [DrawnImage(image, boxes if index == 0 else ()) for index, image in enumerate(images)]
    return Panel(tuple(pictures), tuple(lines), (Line(title, faint=True),))


def drawn_boxes(boxes: Tensor) -> tuple[PairOfBoxes, ...]:
    """Returns boxes to draw, each with a colour and a number. ``boxes`` (N, 4) are centre and size relative to an image."""
    names = colours(len(boxes))
    return tuple(
        PairOfBoxes((cx - w / 2, cy - h / 2, w, h), None, names[index], str(index + 1))
        for index, (cx, cy, w, h) in enumerate(boxes.tolist())
    )


def images_of(pixels: Pixels, row: int, count: int) -> list[np.ndarray]:
    """Returns the images of an example: frames of a video or, with K images per example, one from each of the K parts of the
    batch."""
    if isinstance(pixels, NativeImages):
        return [as_image(image[0]) for image in pixels.each_raster()[row::count]]
    shown = pixels[row] if pixels.dim() == 5 else pixels[row::count]
    return [as_image(image) for image in shown]


def as_image(pixels: Tensor) -> np.ndarray:
    """Converts pixels (3, H, W) to (H, W, 3) uint8. Normalisation is undone."""
    if pixels.is_floating_point():
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in PUBLISHED_PIXELS.values())
        pixels = ((pixels.float() * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
    return fitted(pixels, SIDE).permute(1, 2, 0).contiguous().numpy()


def lines_of(text: Any, row: int, tokenizer: Any, box: PairOfBoxes | None = None) -> list[Line]:
    """Returns the text of an example as the model receives it. Masked positions are in quotes; the original tokens follow the
    text.

    Args:
        box: the box that the text describes.
    """
    key = None if box is None else (box.colour, box.number)
    if isinstance(text, MaskedText):
        length = int(text.mask[row].sum())
        labels = text.labels[row]
        positions = set(text.positions[row][labels != IGNORE].tolist())
        shown = _text_with_quotes(text.masked_ids[row][:length].tolist(), positions, tokenizer)
        return [Line(shown, key=key), *_targets(labels, tokenizer)]
    if isinstance(text, LeftToRightText):
        ids, labels = text.ids[row], text.labels[row]
        length = int((ids != tokenizer.pad_token_id).sum())
        positions = set(text.mask_indices[row][labels != IGNORE].tolist())
        return [
            Line(_text_with_quotes(ids[:length].tolist(), positions, tokenizer), key=key),
            *_targets(labels, tokenizer),
        ]
    if isinstance(text, Text):
        return [Line(_text_with_quotes(text.ids[row][text.mask[row]].tolist(), set(), tokenizer), key=key)]
    return []


def _wrong_lines(part: Any, row: int, tokenizer: Any) -> list[Line]:
    """Returns the hard negatives of an example."""
    hard = getattr(part, "hard_negatives", None)
    if hard is None:
        return []
    count = hard.valid.shape[1]
    text_rows = [row * count + index for index in torch.nonzero(hard.valid[row]).flatten().tolist()]
    return [Line(f"wrong: {line.text}") for text_row in text_rows for line in lines_of(hard.text, text_row, tokenizer)]


def _targets(labels: Tensor, tokenizer: Any) -> list[Line]:
    ids = labels[labels != IGNORE].tolist()
    return [Line(f"to predict: «{' '.join(tokenizer.convert_ids_to_tokens(ids))}»")] if ids else []


def _text_with_quotes(ids: list[int], positions: set[int], tokenizer: Any) -> str:
    """Decodes token ids to text, with the tokens at ``positions`` in quotes. Word pieces are joined."""
    text = ""
    for position, token in enumerate(tokenizer.convert_ids_to_tokens(ids)):
        shown, joined = as_word(str(token))
        text += ("" if joined or not position else " ") + (f"«{shown}»" if position in positions else shown)
    return text


def as_word(token: str) -> tuple[str, bool]:
    """Returns a token without the tokenizer's word marks, and whether it continues the previous word."""
    if token.startswith("##"):
        return token[2:], True
    return token.lstrip("\u2581\u0120"), False


def _other_lines(part: Any, row: int, tokenizer: Any, classes: Mapping[int, str]) -> list[Line]:
    """Returns the answers with their weights, and the translations, labels and references of an example."""
    lines: list[Line] = []
    owner, answers, labels = (getattr(part, name, None) for name in ("question_of_answer", "answers", "labels"))
    if isinstance(owner, Tensor):
        for index in torch.nonzero(owner == row).flatten().tolist()[:MAX_LINES]:
            weight = f"{float(part.weights[index]):.2g} x "
            if isinstance(answers, Text):
                lines += [Line(weight + each.text) for each in lines_of(answers, index, tokenizer)]
            elif isinstance(labels, Tensor):
                class_index = int(labels[index])
                known = f"{weight}class {class_index} {classes.get(class_index, '')}"
                lines.append(Line("no class" if class_index == IGNORE else known))
    lines += lines_of(getattr(part, "other", None), row, tokenizer)
    label = getattr(part, "label", None)
    if isinstance(label, Tensor):
        lines.append(Line(f"label {int(label[row])}"))
    return lines
