"""The FLOPs of the pre-training streams (types of training data). :mod:`models.flops` explains what is counted."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor

from batches.base import IGNORE
from batches.losses import Work
from batches.pretraining import ImageTextBatch, RegionBatch, TextBatch, TranslationBatch, VideoTextBatch
from batches.texts import MaskedText
from models.flops import Lengths, ModelCost, frames_of, lengths
from models.pretraining.streams import PairStream, RegionTextStream, Stream, hard_negatives_in, predicts_boxes

COUNTED = frozenset({"contrastive", "matching", "mlm", "l1", "giou"})
"""The losses whose FLOPs this module counts."""


def work_of(
    cost: ModelCost, stream: Stream[Any], batch: Any, requested: Collection[str], *, shares_images: bool = False
) -> Work:
    """Counts the examples, images, tokens and FLOPs of a batch in host memory. If a requested loss is not in :data:`COUNTED`, the
    FLOPs are unknown (NaN).

    Args:
        cost: the costs of the model's modules.
        stream: the stream of the batch.
        batch: the batch.
        requested: names of the losses that are computed.
        shares_images: True if another stream encodes the same images and counts them.
    """
    match batch:
        case TextBatch():
            work = _texts(cost, batch)
        case TranslationBatch():
            work = _translations(cost, stream, batch, requested)
        case RegionBatch():
            assert isinstance(stream, RegionTextStream)
            work = _regions(cost, stream, batch, requested)
        case _:
            assert isinstance(stream, PairStream)
            work = _images(cost, stream, batch, requested)
    if shares_images:
        work = replace(work, samples=0, images=0, flops=work.flops - cost.vision.encode(int(work.images)))
    return work if COUNTED.issuperset(requested) else replace(work, flops=math.nan)


def _texts(cost: ModelCost, batch: TextBatch) -> Work:
    tokens = lengths(batch.text.mask, batch.valid)
    flops = cost.encode_texts(tokens) + _mlm(cost.of_texts, batch.text, batch.valid, tokens, None)
    return Work(len(tokens), 0, int(tokens.sum()), flops)


def _images(
    cost: ModelCost, stream: PairStream[Any], batch: ImageTextBatch | VideoTextBatch, requested: Collection[str]
) -> Work:
    tokens, frames = lengths(batch.text.mask, batch.valid), frames_of(batch.pixels)
    examples, keys = len(tokens), cost.vision.keys(frames)
    flops: float = cost.vision.encode(examples * frames)
    if stream.needs_fusion(requested):
        flops += cost.fusion.project(examples * keys)
    flops += _pairs(cost, stream, batch, tokens, keys, requested)
    return Work(examples, examples * frames, int(tokens.sum()), flops)


def _regions(cost: ModelCost, stream: RegionTextStream, batch: RegionBatch, requested: Collection[str]) -> Work:
    tokens = lengths(batch.text.mask, batch.valid)
    regions, keys = len(tokens), cost.vision.keys()
    images = len(np.unique(batch.image_index.numpy()[batch.valid.numpy()]))
    flops: float = cost.vision.encode(images) + cost.vision.pool_regions(regions)
    if stream.needs_fusion(requested):
        # All patches once, the mean of every region, and the mean of every whole image, from which boxes are predicted.
        flops += cost.fusion.project(images * keys + regions)
    flops += _pairs(cost, stream, batch, tokens, keys, requested)
    if predicts_boxes(requested):
        located = lengths(batch.text.mask, stream.has_box(batch))
        flops += cost.fusion.run(located, keys, queries=1) + cost.head("box_head", len(located))
    return Work(regions, images, int(tokens.sum()), flops)


def _translations(cost: ModelCost, stream: Stream[Any], batch: TranslationBatch, requested: Collection[str]) -> Work:
    first, second = lengths(batch.text.mask, batch.valid), lengths(batch.other.mask, batch.valid)
    tokens, cost = int(first.sum() + second.sum()), cost.of_texts
    copies = len(stream.texts_to_encode(batch, requested)) - 1  # the first text, its masked copy, or both
    flops = cost.encode_texts(second) + copies * cost.encode_texts(first)
    if "contrastive" in requested:
        flops += cost.align(0, 2 * len(first))
    if "matching" in requested:
        flops += cost.fusion.project(int(first.sum())) + cost.match(second, first)
    if "mlm" in requested:
        flops += cost.fusion.project(int(second.sum())) + _mlm(cost, batch.text, batch.valid, first, second)
    return Work(len(first), 0, tokens, flops)


def _pairs(
    cost: ModelCost,
    stream: Stream[Any],
    batch: ImageTextBatch | VideoTextBatch | RegionBatch,
    tokens: Lengths,
    keys: int,
    requested: Collection[str],
) -> float:
    """FLOPs of the text encoder and of the contrastive, matching and mlm losses. Sampling hard negatives reuses the embeddings
    without gradients and is not counted."""
    flops, hard_negatives = 0.0, 0
    for name in stream.texts_to_encode(batch, requested):
        hard = hard_negatives_in(batch) if name == "hard_negatives" else None
        if hard is None:
            flops += cost.encode_texts(tokens)
        else:
            hard_lengths = lengths(hard.text.mask, (hard.valid & batch.valid.unsqueeze(1)).flatten())
            flops, hard_negatives = flops + cost.encode_texts(hard_lengths), len(hard_lengths)
    if "contrastive" in requested:
        flops += cost.align(len(tokens), len(tokens), hard_negatives)
    if "matching" in requested:
        flops += cost.match(tokens, keys)
    if "mlm" in requested:
        flops += _mlm(cost, batch.text, batch.valid, tokens, keys)
    return flops


def _mlm(cost: ModelCost, text: MaskedText, valid: Tensor, tokens: Lengths, keys: Lengths | int | None) -> float:
    """FLOPs of fusing masked texts, and of the word head."""
    masked = lengths(text.labels != IGNORE, valid)
    return cost.fusion.run(tokens, keys, queries=masked) + cost.head("word_head", int(masked.sum()))
