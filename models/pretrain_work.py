"""What a step of pre-training takes in and does, stream by stream (see :mod:`models.flops` for what counts)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from models import flops
from models.flops import Flops, Lengths
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
    done = Work()
    for stream in ("images", "videos"):
        part = getattr(batch, stream)
        if part is not None:
            done += _pictures(model, part, matching=stream not in batch.unmatched)
    if batch.regions is not None:
        done += _regions(model, batch.regions, matching="regions" not in batch.unmatched)
    if batch.texts is not None:
        done += _texts(model, batch.texts)
    if batch.pairs is not None:
        done += _translations(model, batch.pairs)
    return done


def _pictures(model: PretrainModel, part: ImageTextBatch | VideoTextBatch, matching: bool) -> Work:
    tokens, frames = flops.lengths(part.text.mask, part.valid), flops.frames_of(part.pixels)
    rows, keys = len(tokens), np.full_like(tokens, flops.seen_keys(model.vision, frames))
    done = flops.see(model.vision, rows * frames) + flops.read(model.text, tokens) * 2
    done += flops.contrast(model.contrastive, rows, rows) + flops.remember(model.fusion, int(keys.sum()))
    if matching:
        done += flops.match(model, tokens, keys)
    done += _masked(model, part.text, part.valid, tokens, keys)
    return Work(rows, rows * frames, int(tokens.sum()), done.total)


def _regions(model: PretrainModel, part: RegionBatch, matching: bool) -> Work:
    tokens = flops.lengths(part.text.mask, part.valid)
    rows, images = len(tokens), int(part.image_index[part.valid].unique().numel())
    seen = flops.seen_keys(model.vision)
    keys = np.full_like(tokens, seen)
    done = flops.see(model.vision, images) + flops.read(model.text, tokens) * 2
    # The mean of a region's patches, whose weights have no gradient.
    done += flops.products(rows * (seen - 1) * model.vision.width, factors=1)
    done += flops.contrast(model.contrastive, rows, rows)
    # All patches once, the concept token of every region, and that of every whole image, in which boxes are found.
    done += flops.remember(model.fusion, images * seen + rows)
    if matching:
        done += flops.match(model, tokens, keys)
    boxes = part.valid if model.weights.whole_image_boxes else part.valid & ~part.is_image
    located = flops.lengths(part.text.mask, boxes)
    done += flops.fuse(model.fusion, located, np.full_like(located, seen), wanted=1)
    done += flops.head(model.box_head, len(located))
    done += _masked(model, part.text, part.valid, tokens, keys)
    return Work(rows, images, int(tokens.sum()), done.total)


def _texts(model: PretrainModel, part: TextBatch) -> Work:
    tokens = flops.lengths(part.text.mask, part.valid)
    done = flops.read(model.text, tokens) + _masked(model, part.text, part.valid, tokens, None)
    return Work(len(tokens), 0, int(tokens.sum()), done.total)


def _translations(model: PretrainModel, part: TextPairBatch) -> Work:
    first, second = flops.lengths(part.text.mask, part.valid), flops.lengths(part.other.mask, part.valid)
    count = int(first.sum() + second.sum())
    done = flops.read(model.text, first) * 2 + flops.read(model.text, second)
    done += flops.contrast(model.contrastive, 0, 2 * len(first))
    done += flops.remember(model.fusion, count) + flops.match(model, second, first)
    done += _masked(model, part.text, part.valid, first, second)
    return Work(len(first), 0, count, done.total)


def _masked(model: PretrainModel, text: MaskedText, valid: Tensor, tokens: Lengths, keys: Lengths | None) -> Flops:
    """The fusion of masked texts, and their words."""
    masked = flops.lengths(text.labels != IGNORE, valid)
    fused = flops.fuse(model.fusion, tokens, keys, wanted=masked)
    return fused + flops.words(model.word_head, model.text.word_embeddings, int(masked.sum()))
