"""Streams of image-text and video-text pairs."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
from torch import Tensor

from batches.images import stack_views
from batches.pretraining import ImageTextBatch, VideoTextBatch
from dataset.config import ImageStreamConfig, VideoStreamConfig
from dataset.examples import Account, RecordStream, filled, readable_records
from dataset.media.sources import VideoSource
from dataset.media.video import check_backend
from dataset.media.views import TrainingView
from dataset.records.clips import VideoRecord, choose_clip, parse_video_record
from dataset.records.schema import ImageKeys, ImageRecord, RawRecord, parse_image_record
from dataset.shards.readers import Shards
from dataset.tasks.streams.wordings import Described, EncodedWording, HardNegativeCounts, TextMaker
from dataset.text.processors import TextExample, TextProcessor, clean_caption, mentions_side
from utils.files import expanded


def video_record(config: VideoStreamConfig, raw: RawRecord) -> VideoRecord:
    """Parses a record; see :func:`~dataset.records.clips.parse_video_record`."""
    root = expanded(config.video_root) if config.video_root is not None else None
    return parse_video_record(raw, config.video_key, config.caption_key, root)


def first_clips(shards: Shards, config: VideoStreamConfig) -> Iterator[VideoSource]:
    """Yields the clips of each shard's first record. If any of these clips is a video file, a decoder is needed."""
    for record in readable_records(shards, shards.first_records, partial(video_record, config)):
        yield from record.clips


class ImageStream:
    """A stream of images with captions.

    Args:
        config: config of the stream.
        source: the records, in the order in which they are read.
        text: processor for the captions.
        view: reads the images.
    """

    def __init__(
        self, config: ImageStreamConfig, source: RecordStream[RawRecord], text: TextProcessor, view: TrainingView
    ):
        self.config, self.source, self.text, self.view = config, source, text, view
        self.keys, self.text_maker = ImageKeys.of(config), TextMaker(config, text)

    def batch(self, number: int, account: Account) -> ImageTextBatch:
        """Builds micro-batch ``number``. Records that cannot be used are replaced by fillers."""
        examples = self.source.examples(number, account, self.example)
        rows, valid = filled(examples, lambda: (self.view.filler(), EncodedWording(self.text.filler())))
        views, wordings = [view for view, _ in rows], [wording for _, wording in rows]
        return ImageTextBatch(
            stack_views(views, self.view.image_size),
            self.text.collate([wording.text for wording in wordings]),
            valid,
            self.text_maker.stacked_long_texts(wordings),
            self.text_maker.stacked_hard_negatives(wordings),
        )

    def example(self, raw: RawRecord, rng: np.random.Generator) -> tuple[Tensor, EncodedWording]:
        """Builds the view and the texts of a record.

        Raises:
            BrokenRecordError: if the record cannot be used.
        """
        record = self._parsed(raw)
        wording = self.text_maker.choose(record, record.elements, rng)
        view = self.view(record.image, rng, may_flip=wording.may_flip(self.config.careful_flip))
        return view, self.text_maker.encode(wording, rng)

    def count_hard_negatives(self) -> HardNegativeCounts:
        """See :meth:`~dataset.tasks.streams.wordings.TextMaker.count_hard_negatives`."""

        def described(raw: RawRecord) -> Described:
            record = self._parsed(raw)
            return [record], record.elements

        return self.text_maker.count_hard_negatives(self.source.records, described)

    def _parsed(self, raw: RawRecord) -> ImageRecord:
        # Hard negatives exchange words between the caption and the phrases about boxes.
        with_elements = self.config.hard_negatives is not None
        return parse_image_record(raw, self.keys, self.config.caption_key, self.config.captions, elements=with_elements)


class VideoStream:
    """A stream of video clips with captions. The arguments are the same as for :class:`ImageStream`."""

    def __init__(
        self, config: VideoStreamConfig, source: RecordStream[RawRecord], text: TextProcessor, view: TrainingView
    ):
        self.config, self.source, self.text, self.view = config, source, text, view
        assert isinstance(source.records, Shards)
        check_backend(first_clips(source.records, config), config.reading, "data.videos.reading")

    def batch(self, number: int, account: Account) -> VideoTextBatch:
        """Builds micro-batch ``number``. Records that cannot be used are replaced by fillers."""
        examples = self.source.examples(number, account, self.example)
        rows, valid = filled(examples, lambda: (self.view.filler(), self.text.filler()))
        views, texts = [view for view, _ in rows], [text for _, text in rows]
        return VideoTextBatch(stack_views(views, self.view.image_size), self.text.collate(texts), valid)

    def example(self, raw: RawRecord, rng: np.random.Generator) -> tuple[Tensor, TextExample]:
        """Builds the views and the text of a clip.

        Raises:
            BrokenRecordError: if the record cannot be used.
        """
        record = video_record(self.config, raw)
        source, captions = choose_clip(record, rng, join=self.config.join_clips, min_frames=self.config.min_frames)
        texts = [self.text.choose(alternatives, rng) for alternatives in captions]
        text = clean_caption(" ".join(texts), self.text.max_words)
        may_flip = not (self.config.careful_flip and mentions_side(text))
        return self.view(source, rng, may_flip=may_flip), self.text.encode(text, rng)
