"""What the data of every fine-tuning task share: examples to batches, and evaluation that visits each item once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from dataset.loaders import LoadingConfig, in_workers
from dataset.media.augment import AugmentConfig
from dataset.media.video import VideoReadingConfig, VideoSource, check_backend
from dataset.media.views import TrainingView, check_medium, frame_sampler
from dataset.records.schema import BrokenRecordError, ImageSource
from dataset.shards.samplers import RandomOrder, sample_rng
from dataset.text.processors import PlainTextProcessor, TextLimits, clean_caption, clean_question
from utils.batch import Batch, MicroBatch
from utils.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

E = TypeVar("E")
D = TypeVar("D", bound="FineTuneDataConfig")
T = TypeVar("T")


class FineTuneDataConfig(LoadingConfig):
    """What the training data of every fine-tuning task have."""

    text: TextLimits = TextLimits(max_tokens=40)
    batch_size: int = Field(ge=1, description="Rows of a micro-batch of one process.")

    @property
    def micro_batch(self) -> MicroBatch:
        return MicroBatch("data.batch_size", self.batch_size)


class MediaDataConfig(FineTuneDataConfig):
    """What the training data have where they are images or videos."""

    augment: AugmentConfig = Field(
        default_factory=lambda: AugmentConfig(scale=(0.5, 1.0)), description="augmentation of the pictures or frames"
    )
    video: VideoReadingConfig = Field(default_factory=VideoReadingConfig, description="how videos are read")


class FineTuneBatches(ABC, Generic[D, E]):
    """Micro-batch number u as a function of seed and u (a :class:`~dataset.loaders.BatchMaker`).

    A row that cannot be made is filled and does not count.

    Args:
        data: the training split and its augmentation.
        tokenizer: see :class:`~dataset.text.processors.PlainTextProcessor`.
        image_size: side of the input in pixels.
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
        image_size: int,
        seed: int,
        frames: int | None = None,
    ):
        self.data, self.image_size, self.seed, self.frames = data, image_size, seed, frames
        self.text = self.make_processor(tokenizer, data)
        count = self.read(data)
        self.order = RandomOrder(count, data.batch_size, seed=seed, stream=self.name)
        self.stream_sizes = {self.name: count}
        self.examples_per_batch = self.records_per_batch = data.batch_size

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
    def place(self, index: int) -> str:
        """Where the example comes from."""

    @abstractmethod
    def filler(self) -> E:
        """An example for a row that does not count."""

    @abstractmethod
    def collate(self, examples: Sequence[E], valid: Tensor, **made: Any) -> Batch:
        """The batch; ``made`` holds the fields of :class:`~utils.batch.Batch`."""

    def make(self, number: int) -> Batch:
        """Micro-batch ``number``, counted over all ranks."""
        examples, valid, places, broken = [], [], [], []
        for epoch, index in self.order.batch(number):
            try:
                examples.append(self.example(index, sample_rng(self.seed, self.name, epoch, index)))
                valid.append(True)
                places.append(self.place(index))
            except BrokenRecordError as error:
                broken.append(error.as_broken())
                examples.append(self.filler())
                valid.append(False)
        made = {"records": tuple(places), "broken": tuple(broken), "read": len(valid)}
        return self.collate(examples, torch.tensor(valid), **made)


def in_batches(read: Callable[[int], T], items: range, batch_size: int, workers: int) -> Iterator[list[T]]:
    """``read(item)`` of each item once, in order, in lists of ``batch_size``, read by worker processes.

    Raises:
        UserError: for the first broken record: a held-out set must be whole, or its numbers mean something else.
    """
    chunks = _Chunks(read, items, batch_size)
    yield from in_workers(chunks, range(-(-len(items) // batch_size)), workers)


class _Chunks(Generic[T]):
    def __init__(self, read: Callable[[int], T], items: range, size: int):
        self.read, self.items, self.size = read, items, size

    def __call__(self, number: int) -> list[T]:
        try:
            return [self.read(item) for item in self.items[number * self.size : (number + 1) * self.size]]
        except BrokenRecordError as error:
            raise UserError(f"{error}; a held-out set has to be whole") from None


def media_view(
    data: MediaDataConfig, sources: Sequence[ImageSource | VideoSource], frames: int | None, image_size: int
) -> TrainingView:
    """How training sees ``sources``.

    Raises:
        UserError: as :func:`check_medium` and :func:`~dataset.media.video.check_backend`.
    """
    check_medium(sources, frames, "data.train")
    check_backend((each for each in sources if isinstance(each, VideoSource)), data.video, "data.video")
    return TrainingView(image_size, data.max_pixels, data.augment, frame_sampler(data.video, frames, data.max_pixels))


def cleaned(text: str, max_words: int, place: str) -> str:
    """The text after the released clean-up.

    Raises:
        BrokenRecordError: "empty text" where nothing is left.
    """
    try:
        return clean_caption(text, max_words)
    except ValueError:
        raise BrokenRecordError("empty text", place, f"nothing is left of {text[:80]!r} after cleaning") from None


def cleaned_question(text: str, max_words: int, place: str) -> str:
    """The question after the released clean-up, which is another than that of captions.

    Raises:
        BrokenRecordError: "empty text" where nothing is left of its first words.
    """
    found = clean_question(text, max_words)
    if not found.strip():
        raise BrokenRecordError("empty text", place, f"nothing is left of {text[:80]!r} after cleaning")
    return found


FILLER_TEXT = "a"
"""The text of a row that does not count."""
