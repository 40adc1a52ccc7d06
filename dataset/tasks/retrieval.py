"""Retrieval data: images or videos with their captions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from batches.images import stack_views
from batches.retrieval import RetrievalBatch
from dataset.config import RetrievalDataConfig
from dataset.formats.captioned import CaptionedImages, ImageCaption, read_captioned_images
from dataset.tasks.finetune import FILLER_TEXT, FineTuneBatches, cleaned, media_view
from dataset.text.processors import mentions_side


@dataclass(frozen=True)
class Pair:
    """A training example: a view, (3, S, S) for an image or (F, 3, S, S) for a video; the token ids of a
    caption; and the index of the image or video."""

    pixels: Tensor
    ids: list[int]
    group: int


class RetrievalBatches(FineTuneBatches[RetrievalDataConfig, ImageCaption, Pair]):
    """Batches of captions with their images. An epoch contains every caption once."""

    name = "captions"
    first_group = 0
    """Group of the first image. The images of ``data.replay`` have the groups after those of ``data.train``."""

    def __init__(self, data: RetrievalDataConfig, **options: Any):
        super().__init__(data, **options)
        if isinstance(self.replay, RetrievalBatches):
            self.replay.first_group = len(self.items.images)

    def read(self, data: RetrievalDataConfig) -> CaptionedImages:
        self.items = read_captioned_images(data.train, self.key, data.max_broken)
        self.view = media_view(data, self.items.images, self.key, self.frames, self.image_size)
        return self.items

    def example(self, record: ImageCaption, rng: np.random.Generator) -> Pair:
        caption = cleaned(record.caption, self.text.max_words)
        may_flip = not (self.data.careful_flip and mentions_side(caption))
        view = self.view(record.source, rng, may_flip=may_flip)
        return Pair(view, self.text.token_ids(caption), self.first_group + record.image)

    def filler(self) -> Pair:
        return Pair(self.view.filler(), self.text.token_ids(FILLER_TEXT), -1)

    def collate(self, examples: Sequence[Pair], valid: Tensor, **fields: Any) -> RetrievalBatch:
        return RetrievalBatch(
            pixels=stack_views([example.pixels for example in examples], self.image_size),
            text=self.text.stack_plain([example.ids for example in examples]),
            group=torch.tensor([example.group for example in examples]),
            valid=valid,
            **fields,
        )
