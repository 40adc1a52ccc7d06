"""What a step of pre-training takes in and costs, stream by stream (see :mod:`models.flops` for what counts)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from models.flops import Lengths, ModelCost, frames_of, lengths
from utils.batch import (
    IGNORE,
    ImageTextBatch,
    MaskedText,
    PretrainBatch,
    RegionBatch,
    TextBatch,
    TextPairBatch,
    VideoTextBatch,
    Work,
)

if TYPE_CHECKING:
    from torch import Tensor

    from models.pretrain import PretrainModel


def pretrain_work(model: PretrainModel, batch: PretrainBatch) -> Work:
    """Of a micro-batch on the host."""
    cost, total = model.cost, Work()
    for stream in ("images", "videos"):
        part = getattr(batch, stream)
        if part is not None:
            total += _pairs(cost, part, matching=stream not in batch.unmatched)
    if batch.regions is not None:
        boxes = batch.regions.valid
        if not model.weights.whole_image_boxes:
            boxes = boxes & ~batch.regions.is_image
        total += _regions(cost, batch.regions, boxes, matching="regions" not in batch.unmatched)
    if batch.texts is not None:
        total += _texts(cost, batch.texts)
    if batch.pairs is not None:
        total += _translations(cost, batch.pairs)
    return total


def _pairs(cost: ModelCost, part: ImageTextBatch | VideoTextBatch, matching: bool) -> Work:
    tokens, frames = lengths(part.text.mask, part.valid), frames_of(part.pixels)
    rows, keys = len(tokens), cost.vision.keys(frames)
    flops = cost.vision.encode(rows * frames) + 2 * cost.text.run(tokens) + cost.fusion.project(rows * keys)
    flops += cost.align(rows, rows) + _masked_words(cost, part.text, part.valid, tokens, keys)
    if matching:
        flops += cost.match(tokens, keys)
    return Work(rows, rows * frames, int(tokens.sum()), flops)


def _regions(cost: ModelCost, part: RegionBatch, boxes: Tensor, matching: bool) -> Work:
    """``boxes`` (R,) bool: the rows from which boxes are learned."""
    tokens, located = lengths(part.text.mask, part.valid), lengths(part.text.mask, boxes)
    rows, keys = len(tokens), cost.vision.keys()
    images = len(np.unique(part.image_index.numpy()[part.valid.numpy()]))
    flops = cost.vision.encode(images) + cost.vision.pool_regions(rows) + 2 * cost.text.run(tokens)
    # All patches once, the concept token of every region, and that of every whole image, in which boxes are found.
    flops += cost.fusion.project(images * keys + rows)
    flops += cost.align(rows, rows) + _masked_words(cost, part.text, part.valid, tokens, keys)
    flops += cost.fusion.run(located, keys, wanted=1) + cost.head("box_head", len(located))
    if matching:
        flops += cost.match(tokens, keys)
    return Work(rows, images, int(tokens.sum()), flops)


def _texts(cost: ModelCost, part: TextBatch) -> Work:
    tokens = lengths(part.text.mask, part.valid)
    flops = cost.text.run(tokens) + _masked_words(cost, part.text, part.valid, tokens, None)
    return Work(len(tokens), 0, int(tokens.sum()), flops)


def _translations(cost: ModelCost, part: TextPairBatch) -> Work:
    first, second = lengths(part.text.mask, part.valid), lengths(part.other.mask, part.valid)
    rows, count = len(first), int(first.sum() + second.sum())
    flops = 2 * cost.text.run(first) + cost.text.run(second) + cost.fusion.project(count)
    flops += cost.align(0, 2 * rows) + _masked_words(cost, part.text, part.valid, first, second)
    flops += cost.match(second, first)
    return Work(rows, 0, count, flops)


def _masked_words(
    cost: ModelCost, text: MaskedText, valid: Tensor, tokens: Lengths, keys: Lengths | int | None
) -> float:
    """The fusion of masked texts, and their words."""
    masked = lengths(text.labels != IGNORE, valid)
    return cost.fusion.run(tokens, keys, wanted=masked) + cost.head("word_head", int(masked.sum()))
