"""Retrieval data: images or videos with their captions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from batches.retrieval import RetrievalBatch
from dataset.config import RetrievalDataConfig
from dataset.formats.captioned import read_captioned_images
from dataset.media.augment import stack_views
from dataset.tasks.finetune import FILLER_TEXT, FineTuneBatches, cleaned, media_view
from dataset.text.processors import mentions_side


@dataclass(frozen=True)
class Pair:
    """A training example: a view, (3, S, S) for an image or (F, 3, S, S) for a video; a cleaned caption; and the index of the
    image or video."""

    pixels: Tensor
    caption: str
    group: int


class RetrievalBatches(FineTuneBatches[RetrievalDataConfig, Pair]):
    """Batches of captions with their images. An epoch contains every caption once."""

    name = "captions"

    def read(self, data: RetrievalDataConfig) -> int:
        self.items = read_captioned_images(data.train, "data.train", data.max_broken)
        self.view = media_view(data, self.items.images, self.frames, self.image_size)
        return len(self.items.captions)

    def example(self, index: int, rng: np.random.Generator) -> Pair:
        image = int(self.items.image_of_caption[index])
        source = self.items.images[image]
        caption = cleaned(self.items.captions[index], self.text.max_words, source.location)
        may_flip = not (self.data.careful_flip and mentions_side(caption))
        return Pair(self.view(source, rng, may_flip=may_flip), caption, image)

    def location(self, index: int) -> str:
        return self.items.images[int(self.items.image_of_caption[index])].location

    def filler(self) -> Pair:
        return Pair(self.view.filler(), FILLER_TEXT, -1)

    def collate(self, examples: Sequence[Pair], valid: Tensor, **fields: Any) -> RetrievalBatch:
        return RetrievalBatch(
            pixels=stack_views([example.pixels for example in examples]),
            text=self.text.encode_plain([example.caption for example in examples]),
            group=torch.tensor([example.group for example in examples]),
            valid=valid,
            **fields,
        )
