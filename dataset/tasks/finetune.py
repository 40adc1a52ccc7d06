"""Shared code of the fine-tuning tasks: turns examples into batches, and reads each item once for evaluation."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
from torch import Tensor

from batches.base import Batch
from dataset.broken import BrokenRecordError
from dataset.config import (
    FineTuneDataConfig,
    MediaDataConfig,
)
from dataset.examples import Account, Located, RecordsInMemory, RecordStream, Table, filled, held_out_records
from dataset.media.sources import ImageSource, VideoSource
from dataset.media.video import FrameSampler, check_backend
from dataset.media.views import TrainingView, check_medium
from dataset.shards.samplers import RandomOrder
from dataset.text.processors import PlainTextProcessor, clean_caption, clean_question
from dataset.workers import in_workers
from utils.image_size import ImageSize

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

E = TypeVar("E")
D = TypeVar("D", bound="FineTuneDataConfig")
R = TypeVar("R", bound=Located)
T = TypeVar("T")


class FineTuneBatches(ABC, Generic[D, R, E]):
    """Builds micro-batch u as a function of the seed and u (a :class:`~dataset.loaders.BatchMaker`).

    A task reads its annotations (:meth:`read`), makes an example of a row (:meth:`example`), and collates examples
    (:meth:`collate`); :mod:`dataset.examples` does the rest. An example that cannot be made is replaced by a filler, which is
    masked out of the losses. With ``data.replay``, the last examples of each micro-batch come from an earlier data set.

    Args:
        data: config of the training split and its augmentation.
        tokenizer: see :class:`~dataset.text.processors.PlainTextProcessor`.
        image_size: side of the input in pixels, or its height and width.
        seed: seed of order and augmentation.
        frames: number of frames per video; None if the data are images.

    Raises:
        UserError: if the split cannot be used.
    """

    name: str
    """Name of the stream; each name has different random numbers."""

    key = "data.train"
    """Config key of the split."""

    replay: FineTuneBatches[D, R, E] | None = None
    """The batches of the earlier data set of ``data.replay``."""

    def __init__(
        self,
        data: D,
        *,
        tokenizer: PreTrainedTokenizerFast,
        image_size: ImageSize,
        seed: int,
        frames: int | None = None,
    ):
        self.image_size, self.seed, self.frames = image_size, seed, frames
        self.text = self.make_processor(tokenizer, data)
        self.examples_per_batch, self.records_per_batch = data.batch_size, data.records_per_batch
        self._open(data, data.records_per_batch)
        if data.replay is not None:
            replay = copy.copy(self)  # with the same settings, and its own records
            replay.name, replay.key = f"{self.name}/replay", "data.replay.train"
            earlier = data.model_copy(update={"train": data.replay.train, "replay": None})
            replay._open(earlier, data.replayed_per_batch)
            self.stream_sizes |= replay.stream_sizes
            self.replay = replay

    def _open(self, data: D, count: int) -> None:
        """Reads the split of ``data``, of which each micro-batch takes ``count`` records."""
        self.data = data
        records = RecordsInMemory(self.read(data))
        order = RandomOrder(len(records), count, seed=self.seed, stream=self.name)
        self.source = RecordStream(records, order, name=self.name, seed=self.seed)
        self.stream_sizes = {self.name: len(records)}

    def make_processor(self, tokenizer: PreTrainedTokenizerFast, data: D) -> PlainTextProcessor:
        """Returns the processor that tokenizes the texts."""
        return PlainTextProcessor(tokenizer, data.text)

    @abstractmethod
    def read(self, data: D) -> Table[R]:
        """Reads and checks the training split, whose config key is :attr:`key`."""

    @abstractmethod
    def example(self, record: R, rng: np.random.Generator) -> E:
        """Builds the training example of a row of the split: reads the image, augments it, and encodes the texts.

        Raises:
            BrokenRecordError: if the example cannot be made.
        """

    @abstractmethod
    def filler(self) -> E:
        """Returns an example that fills a row of the batch and does not count in the losses."""

    @abstractmethod
    def collate(self, examples: Sequence[E], valid: Tensor, **fields: Any) -> Batch:
        """Builds a batch of the examples. ``fields`` are the fields of :class:`~batches.base.Batch`."""

    def make(self, number: int) -> Batch:
        """Builds micro-batch ``number``, counted over all ranks."""
        account = Account()
        examples = self.source.examples(number, account, self.example)
        if self.replay is not None:
            examples += self.replay.source.examples(number, account, self.replay.example)
        rows, valid = filled(examples, self.filler)
        return self.collate(rows, valid, **account.fields())


def in_batches(
    read: Callable[[int], T],
    items: range,
    batch_size: int,
    workers: int,
    location: Callable[[int], str],
) -> Iterator[list[T]]:
    """Reads each item once, in order, with worker processes.

    Args:
        read: reads an item.
        items: the items.
        batch_size: number of items in each list that is returned.
        workers: number of worker processes.
        location: returns the location of an item, to name in error messages.

    Yields:
        Lists of the results of ``read``.

    Raises:
        UserError: for the first broken record. Metrics on an incomplete held-out set would not be comparable.
    """
    chunks = _Chunks(read, items, batch_size, location)
    yield from in_workers(chunks, range(-(-len(items) // batch_size)), workers)


class _Chunks(Generic[T]):
    def __init__(self, read: Callable[[int], T], items: range, size: int, location: Callable[[int], str]):
        self.read, self.items, self.size, self.location = read, items, size, location

    def __call__(self, number: int) -> list[T]:
        items = self.items[number * self.size : (number + 1) * self.size]
        return list(held_out_records(items, self.read, self.location))


def frame_sampler(data: MediaDataConfig, frames: int | None) -> FrameSampler | None:
    """Returns a sampler of ``frames`` frames per video, or None for an image model."""
    return None if frames is None else FrameSampler(frames, data.video, data.max_pixels, data.pixels)


def media_view(
    data: MediaDataConfig,
    sources: Sequence[ImageSource | VideoSource],
    key: str,
    frames: int | None,
    image_size: ImageSize,
) -> TrainingView:
    """Returns the view with which training reads ``sources``, the images or videos of the split with the config ``key``.

    Raises:
        UserError: see :func:`check_medium` and :func:`~dataset.media.video.check_backend`.
    """
    check_medium(sources, frames, key)
    check_backend((source for source in sources if isinstance(source, VideoSource)), data.video, "data.video")
    return TrainingView(image_size, data.max_pixels, data.augment, frame_sampler(data, frames), pixels=data.pixels)


def cleaned(text: str, max_words: int) -> str:
    """Cleans a text like the captions in the authors' code.

    Raises:
        BrokenRecordError: "empty text" if nothing is left.
    """
    try:
        return clean_caption(text, max_words)
    except ValueError:
        raise BrokenRecordError("empty text", f"nothing is left of {text[:80]!r} after cleaning") from None


def cleaned_question(text: str, max_words: int) -> str:
    """Cleans a question as the authors' code does, which cleans questions differently from captions.

    Raises:
        BrokenRecordError: "empty text" if nothing is left of its first ``max_words`` words.
    """
    cleaned = clean_question(text, max_words)
    if not cleaned.strip():
        raise BrokenRecordError("empty text", f"nothing is left of {text[:80]!r} after cleaning")
    return cleaned


FILLER_TEXT = "a"
"""Text of a filler row, which does not count in the losses."""
