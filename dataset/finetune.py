"""What the data of every fine-tuning task share: examples to batches, and evaluation that visits each item once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from dataset.images import decode, evaluation_view
from dataset.loaders import LoadingConfig, in_workers
from dataset.records import BrokenRecordError, ImageSource
from dataset.samplers import RandomOrder, sample_rng
from dataset.text import PlainTextProcessor, TextLimits, clean_caption
from utils.batch import Batch, Text
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


class FineTuneBatches(ABC, Generic[D, E]):
    """Micro-batch number u as a function of seed and u (a :class:`~dataset.loaders.BatchMaker`).

    A row that cannot be made is filled and does not count.

    Args:
        data: the training split and its augmentation.
        tokenizer: see :class:`~dataset.text.PlainTextProcessor`.
        image_size: side of the input in pixels.
        seed: of order and augmentation.

    Raises:
        UserError: if the split cannot be used.
    """

    name: str
    """Of the stream: it has random numbers of its own."""

    def __init__(self, data: D, *, tokenizer: PreTrainedTokenizerFast, image_size: int, seed: int):
        self.data, self.image_size, self.seed = data, image_size, seed
        self.text = self.make_processor(tokenizer, data)
        count = self.read(data)
        self.order = RandomOrder(count, data.batch_size, seed=seed, stream=self.name)
        self.stream_sizes = {self.name: count}
        self.rows_per_batch = self.records_per_batch = data.batch_size

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


class EvaluationView:
    """A picture as evaluation sees it: the whole of it, (3, S, S) uint8."""

    def __init__(self, image_size: int, max_pixels: int):
        self.image_size, self.max_pixels = image_size, max_pixels

    def __call__(self, source: ImageSource, size: tuple[int, int] | None = None) -> Tensor:
        """The view; ``size``: (width, height) that the annotations give the picture.

        Raises:
            BrokenRecordError: the picture cannot be read, or is of another size.
        """
        image = decode(source.load(), self.max_pixels, source.place)
        if size is not None:
            check_size(image, size, source.place)
        return evaluation_view(image, self.image_size)


def check_size(image: Tensor, size: tuple[int, int], place: str) -> None:
    """Raises :class:`BrokenRecordError` where a picture (3, H, W) is not of the (width, height) that its boxes refer to."""
    found = (image.shape[2], image.shape[1])
    if found != size:
        raise BrokenRecordError("unreadable image", place, f"is of {found} pixels, in the annotations of {size}")


def cleaned(text: str, max_words: int, place: str) -> str:
    """The text after the released clean-up.

    Raises:
        BrokenRecordError: "empty text" where nothing is left.
    """
    try:
        return clean_caption(text, max_words)
    except ValueError:
        raise BrokenRecordError("empty text", place, f"nothing is left of {text[:80]!r} after cleaning") from None


def encode_texts(processor: PlainTextProcessor, texts: Sequence[str]) -> Text:
    """Cleaned texts as ids and mask, padded to the longest."""
    return Text(*processor.encode_plain(texts))


def black(size: int) -> Tensor:
    """A black picture for a row that does not count."""
    return torch.zeros(3, size, size, dtype=torch.uint8)


FILLER_TEXT = "a"
"""The text of a row that does not count."""
