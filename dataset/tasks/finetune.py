"""What the data of every fine-tuning task share: examples to batches, and evaluation that visits each item once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
from pydantic import Field
from torch import Tensor

from batches.base import Batch, MicroBatch
from dataset.loaders import LoadingConfig
from dataset.media.augment import AugmentConfig
from dataset.media.video import FrameSampler, VideoReadingConfig, VideoSource, check_backend
from dataset.media.views import TrainingView, check_medium
from dataset.records.broken import not_whole
from dataset.records.schema import BrokenRecordError, ImageSource
from dataset.shards.samplers import RandomOrder, sample_rng
from dataset.tasks.account import Account, filled
from dataset.text.processors import PlainTextProcessor, TextLimits, clean_caption, clean_question
from dataset.workers import in_workers, reading
from utils.image_size import ImageSize

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

E = TypeVar("E")
D = TypeVar("D", bound="FineTuneDataConfig")
T = TypeVar("T")


class FineTuneDataConfig(LoadingConfig):
    """What the training data of every fine-tuning task have."""

    text: TextLimits = TextLimits(max_tokens=40)
    batch_size: int = Field(ge=1, description="examples in a micro-batch of one rank")

    @property
    def micro_batch(self) -> MicroBatch:
        return MicroBatch("data.batch_size", self.batch_size)


class MediaDataConfig(FineTuneDataConfig):
    """What the training data have where they are images or videos."""

    augment: AugmentConfig = Field(
        default_factory=lambda: AugmentConfig(scale=(0.5, 1.0)), description="augmentation of the images or frames"
    )
    video: VideoReadingConfig = Field(default_factory=VideoReadingConfig, description="how videos are read")


class FineTuneBatches(ABC, Generic[D, E]):
    """Micro-batch number u as a function of seed and u (a :class:`~dataset.loaders.BatchMaker`).

    A row that cannot be made is filled and does not count.

    Args:
        data: the training split and its augmentation.
        tokenizer: see :class:`~dataset.text.processors.PlainTextProcessor`.
        image_size: side of the input in pixels, or its height and width.
        seed: of order and augmentation.
        frames: of a video; None where the data are images.

    Raises:
        UserError: if the split cannot be used.
    """

    name: str
    """Of the stream: it has random numbers of its own."""

    def __init__(
        self,
        data: D,
        *,
        tokenizer: PreTrainedTokenizerFast,
        image_size: ImageSize,
        seed: int,
        frames: int | None = None,
    ):
        self.data, self.image_size, self.seed, self.frames = data, image_size, seed, frames
        self.text = self.make_processor(tokenizer, data)
        count = self.read(data)
        self.order = RandomOrder(count, data.batch_size, seed=seed, stream=self.name)
        self.stream_sizes = {self.name: count}
        self.examples_per_batch, self.records_per_batch = data.batch_size, data.records_per_batch

    def make_processor(self, tokenizer: PreTrainedTokenizerFast, data: D) -> PlainTextProcessor:
        """What makes tokens of the texts."""
        return PlainTextProcessor(tokenizer, data.text)

    @abstractmethod
    def read(self, data: D) -> int:
        """Read and check the training split; gives back how many examples it has."""

    @abstractmethod
    def example(self, index: int, rng: np.random.Generator) -> E:
        """Training example ``index``, augmented.

        Raises:
            BrokenRecordError: it cannot be made.
        """

    @abstractmethod
    def location(self, index: int) -> str:
        """Where the example comes from."""

    @abstractmethod
    def filler(self) -> E:
        """An example for a row that does not count."""

    @abstractmethod
    def collate(self, examples: Sequence[E], valid: Tensor, **account: Any) -> Batch:
        """The batch; ``account`` holds the fields of :class:`~batches.base.Batch`."""

    def make(self, number: int) -> Batch:
        """Micro-batch ``number``, counted over all ranks."""
        account = Account()
        drawn = self.order.batch(number)
        examples: list[E | None] = []
        for epoch, index in drawn:
            with account.record(self.name, self.location(index)) as record:
                record.example = self.example(index, sample_rng(self.seed, self.name, epoch, index))
            examples.append(record.example)
        try:
            return self._batch(examples, account)
        except Exception:
            # Texts are tokenised here. Which example is to blame shows where each is collated alone.
            if not (failed := self._not_collated(examples)):
                raise
            for row, error in failed.items():
                account.reject(self.name, error, self.location(drawn[row][1]))
                examples[row] = None
            return self._batch(examples, account)

    def _batch(self, examples: Sequence[E | None], account: Account) -> Batch:
        rows, valid = filled(examples, self.filler)
        return self.collate(rows, valid, **account.fields())

    def _not_collated(self, examples: Sequence[E | None]) -> dict[int, Exception]:
        """What is raised by the examples that cannot be collated, by their row."""
        failed = {}
        for row, example in enumerate(examples):
            try:
                self._batch([example], Account())
            except Exception as error:
                failed[row] = error
        return failed


def in_batches(
    read: Callable[[int], T],
    items: range,
    batch_size: int,
    workers: int,
    location: Callable[[int], str] = "held-out record {}".format,
) -> Iterator[list[T]]:
    """``read(item)`` of each item once, in order, in lists of ``batch_size``, read by worker processes; ``location``: of an item,
    for messages.

    Raises:
        UserError: for the first broken record: a held-out set must be whole, or its numbers mean something else.
    """
    chunks = _Chunks(read, items, batch_size, location)
    yield from in_workers(chunks, range(-(-len(items) // batch_size)), workers)


class _Chunks(Generic[T]):
    def __init__(self, read: Callable[[int], T], items: range, size: int, location: Callable[[int], str]):
        self.read, self.items, self.size, self.location = read, items, size, location

    def __call__(self, number: int) -> list[T]:
        items, note = [], reading.get(None)
        for index in self.items[number * self.size : (number + 1) * self.size]:
            location = self.location(index)
            if note is not None:
                note(location)
            try:
                items.append(self.read(index))
            except Exception as error:
                raise not_whole(error, location) from None
        return items


def frame_sampler(data: MediaDataConfig, frames: int | None) -> FrameSampler | None:
    """What takes ``frames`` of each video; None where the model is one of images."""
    return None if frames is None else FrameSampler(frames, data.video, data.max_pixels, data.pixels)


def media_view(
    data: MediaDataConfig, sources: Sequence[ImageSource | VideoSource], frames: int | None, image_size: ImageSize
) -> TrainingView:
    """How training sees ``sources``.

    Raises:
        UserError: as :func:`check_medium` and :func:`~dataset.media.video.check_backend`.
    """
    check_medium(sources, frames, "data.train")
    check_backend((source for source in sources if isinstance(source, VideoSource)), data.video, "data.video")
    return TrainingView(image_size, data.max_pixels, data.augment, frame_sampler(data, frames), pixels=data.pixels)


def cleaned(text: str, max_words: int, location: str) -> str:
    """The text after the released clean-up.

    Raises:
        BrokenRecordError: "empty text" where nothing is left.
    """
    try:
        return clean_caption(text, max_words)
    except ValueError:
        raise BrokenRecordError("empty text", location, f"nothing is left of {text[:80]!r} after cleaning") from None


def cleaned_question(text: str, max_words: int, location: str) -> str:
    """The question after the released clean-up, which is another than that of captions.

    Raises:
        BrokenRecordError: "empty text" where nothing is left of its first words.
    """
    cleaned = clean_question(text, max_words)
    if not cleaned.strip():
        raise BrokenRecordError("empty text", location, f"nothing is left of {text[:80]!r} after cleaning")
    return cleaned


FILLER_TEXT = "a"
"""The text of a row that does not count."""
