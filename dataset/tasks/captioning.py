"""Captioning data: captions that follow a prompt, with the positions of the tokens to predict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from batches.captioning import CaptioningBatch, LeftToRightText
from batches.images import stack_views
from dataset.config import CaptioningDataConfig
from dataset.formats.captioned import CaptionedImages, ImageCaption, read_captioned_images
from dataset.tasks.finetune import FineTuneBatches, media_view
from dataset.text.processors import TextProcessor, mentions_side
from utils.errors import UserError


def prompt_tokens(processor: TextProcessor, prompt: str) -> list[int]:
    """Returns the tokens of [CLS] and the prompt.

    Raises:
        UserError: if ``data.text.max_tokens`` leaves no room for a word after the prompt.
    """
    tokens = [processor.cls_id, *processor.pieces(prompt)[0]]
    if len(tokens) >= processor.limits.max_tokens:
        raise UserError(
            f"{prompt!r} and [CLS] are {len(tokens)} tokens, and data.text.max_tokens is "
            f"{processor.limits.max_tokens}, which leaves no room for a caption",
            where="data.prompt",
            remedy="raise it or shorten the prompt",
        )
    return tokens


@dataclass(frozen=True)
class CaptionExample:
    """A training example.

    Attributes:
        pixels: (3, S, S) view of the image, or (F, 3, S, S) view of the video.
        ids: token ids of prompt and caption.
        targets: positions of the tokens to predict, ascending.
        references: all captions of the image.
    """

    pixels: Tensor
    ids: list[int]
    targets: list[int]
    references: tuple[str, ...]


class CaptioningBatches(FineTuneBatches[CaptioningDataConfig, ImageCaption, CaptionExample]):
    """Batches of captions with their images. An epoch contains every caption once."""

    name = "captions"
    text: TextProcessor

    def make_processor(self, tokenizer: Any, data: CaptioningDataConfig) -> TextProcessor:
        return TextProcessor(tokenizer, data.text)

    def read(self, data: CaptioningDataConfig) -> CaptionedImages:
        self.prompt = prompt_tokens(self.text, data.prompt)
        self.items = read_captioned_images(data.train, self.key, data.max_broken)
        self.view = media_view(data, self.items.images, self.key, self.frames, self.image_size)
        return self.items

    def example(self, record: ImageCaption, rng: np.random.Generator) -> CaptionExample:
        references = self.items.captions_of(record.image)
        # Generated captions may be scored against all captions of the image.
        may_flip = not (self.data.careful_flip and any(map(mentions_side, references)))
        pixels = self.view(record.source, rng, may_flip=may_flip)
        ids, targets = self.tokens(record.caption, rng)
        return CaptionExample(pixels, ids, targets, references)

    def tokens(self, caption: str, rng: np.random.Generator) -> tuple[list[int], list[int]]:
        """Returns the tokens of [CLS], prompt, caption and [SEP], and the positions of the tokens to predict.

        The tokens are truncated to ``max_tokens``. As in the authors' code, a truncated text has no [SEP], because the caption
        does not end there.
        """
        pieces, continues = self.text.pieces(caption)
        before = len(self.prompt)
        longest = self.data.text.max_tokens
        ids = [*self.prompt, *pieces, self.text.sep_id][:longest]
        joined = [*[False] * before, *continues, False][:longest]
        return ids, self.text.mask_positions(joined, rng, prompt=before - 1)

    def filler(self) -> CaptionExample:
        return CaptionExample(self.view.filler(), [*self.prompt, self.text.sep_id], [len(self.prompt)], ())

    def collate(self, examples: Sequence[CaptionExample], valid: Tensor, **fields: Any) -> CaptioningBatch:
        ids, targets = [example.ids for example in examples], [example.targets for example in examples]
        return CaptioningBatch(
            pixels=stack_views([example.pixels for example in examples], self.image_size),
            text=LeftToRightText.of(ids, targets, self.text.mask_id, self.text.pad_id),
            references=tuple(example.references for example in examples),
            valid=valid,
            **fields,
        )
