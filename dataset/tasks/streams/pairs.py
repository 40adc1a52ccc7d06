"""Streams of image-text and video-text pairs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor

from batches.pretraining import ImageTextBatch, VideoTextBatch
from batches.texts import MaskedText
from dataset.config import (
    ImageStreamConfig,
    VideoStreamConfig,
)
from dataset.media.augment import stack_views
from dataset.media.video import VideoSource, check_backend
from dataset.media.views import TrainingView
from dataset.records.clips import VideoRecord, choose_clip, parse_video_record
from dataset.records.schema import RawRecord, parse_image_record, usable_elements
from dataset.shards.readers import Shards
from dataset.shards.samplers import RecordSource
from dataset.tasks.account import Account, filled
from dataset.tasks.streams.base import image_keys, read_examples
from dataset.tasks.streams.wordings import Described, EncodedWording, HardNegativeCounts, TextMaker, Wording
from dataset.text.processors import TextProcessor, clean_caption
from utils.errors import UserError
from utils.files import expanded


def video_record(config: VideoStreamConfig, raw: RawRecord, caption_key: str | None = None) -> VideoRecord:
    """Parses a record; see :func:`~dataset.records.clips.parse_video_record`."""
    root = expanded(config.video_root) if config.video_root is not None else None
    return parse_video_record(raw, config.video_key, caption_key or config.caption_key, root)


def first_clips(shards: Shards, config: VideoStreamConfig, caption_key: str) -> Iterator[VideoSource]:
    """Yields the clips of each shard's first record. If any of these clips is a video file, a decoder is needed."""
    for first in shards.starts:
        try:
            yield from video_record(config, shards.read(first), caption_key).clips
        except UserError:
            raise
        except Exception:
            continue  # reported when training reads the record


class PairStream(ABC):
    """A stream of images or videos, each with a text.

    Args:
        config: config of the stream.
        sources: records of the noisy set, and of the clean set if there is one.
        text: processor for the captions.
        view: reads the images or videos.
    """

    def __init__(
        self,
        config: ImageStreamConfig | VideoStreamConfig,
        sources: tuple[RecordSource, RecordSource | None],
        text: TextProcessor,
        view: TrainingView,
    ):
        self.sources, self.text, self.view = sources, text, view
        named = config.clean.caption_key if config.clean else None
        self.caption_keys = (config.caption_key, named or config.caption_key)
        self.careful_flip = config.careful_flip

    def rows(
        self, number: int, clean: bool, account: Account
    ) -> tuple[Tensor, MaskedText, Tensor, list[EncodedWording]]:
        """Returns micro-batch ``number``: the pixels, the texts, a mask that is False for filler rows, and all texts of each
        row."""
        source = self.sources[clean]
        assert source is not None
        example = partial(self.example, caption_key=self.caption_keys[clean])
        examples = read_examples(source, number, account, example)
        rows, valid = filled(examples, lambda: (self.view.filler(), EncodedWording(self.text.filler())))
        views, texts = map(list, zip(*rows, strict=True))
        return stack_views(views), self.text.collate([each.text for each in texts]), valid, texts

    @abstractmethod
    def example(self, raw: RawRecord, rng: np.random.Generator, caption_key: str) -> tuple[Tensor, EncodedWording]:
        """Builds the view and the texts of a record.

        Raises:
            BrokenRecordError: if the record cannot be used.
        """


class ImageStream(PairStream):
    """A stream of images with captions."""

    def __init__(self, config: ImageStreamConfig, *arguments: Any):
        super().__init__(config, *arguments)
        self.keys, self.captions, self.text_maker = image_keys(config), config.captions, TextMaker(config, self.text)

    def batch(self, number: int, clean: bool, account: Account) -> ImageTextBatch:
        pixels, text, valid, texts = self.rows(number, clean, account)
        long, hard_negatives = self.text_maker.stacked_long_texts(texts), self.text_maker.stacked_hard_negatives(texts)
        return ImageTextBatch(pixels, text, valid, long, hard_negatives)

    def example(self, raw: RawRecord, rng: np.random.Generator, caption_key: str) -> tuple[Tensor, EncodedWording]:
        record = parse_image_record(raw, self.keys, caption_key, self.captions)
        elements = usable_elements(raw) if self.text_maker.hard_negatives else []
        wording = self.text_maker.choose(record, elements, rng, record.location)
        view = self.view(record.image, rng, may_flip=wording.may_flip(self.careful_flip))
        return view, self.text_maker.encode(wording, rng)

    def count_hard_negatives(self) -> HardNegativeCounts:
        """See :meth:`~dataset.tasks.streams.wordings.TextMaker.count_hard_negatives`."""

        def described(raw: RawRecord) -> Described:
            record = parse_image_record(raw, self.keys, self.caption_keys[0], self.captions)
            return [record], usable_elements(raw)

        source = self.sources[0]
        assert source is not None
        return self.text_maker.count_hard_negatives(source.shards, described)


class VideoStream(PairStream):
    """A stream of video clips with captions."""

    def __init__(self, config: VideoStreamConfig, *arguments: Any):
        super().__init__(config, *arguments)
        self.config = config
        for source, caption_key in zip(self.sources, self.caption_keys, strict=True):
            if source is not None:
                check_backend(first_clips(source.shards, config, caption_key), config.reading, "data.videos.reading")

    def batch(self, number: int, clean: bool, account: Account) -> VideoTextBatch:
        pixels, text, valid, _ = self.rows(number, clean, account)
        return VideoTextBatch(pixels, text, valid)

    def example(self, raw: RawRecord, rng: np.random.Generator, caption_key: str) -> tuple[Tensor, EncodedWording]:
        record = video_record(self.config, raw, caption_key)
        join, frames = self.config.join_clips, self.config.min_frames
        source, captions = choose_clip(record, rng, join=join, min_frames=frames)
        texts = [self.text.choose(alternatives, rng, record.location) for alternatives in captions]
        text = clean_caption(" ".join(texts), self.text.max_words)
        view = self.view(source, rng, may_flip=Wording(text).may_flip(self.careful_flip))
        return view, EncodedWording(self.text.encode(text, rng))
