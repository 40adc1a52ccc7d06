"""What the data of every fine-tuning task share: examples to batches, and evaluation that visits each item once."""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from dataset.broken import broken_record, not_whole
from dataset.images import AugmentConfig, RandAugment, evaluation_view, training_view
from dataset.loaders import LoadingConfig, in_workers
from dataset.pictures import Picture, PixelsAre, decode, for_boxes
from dataset.records import BrokenRecordError, ImageSource
from dataset.samplers import RandomOrder, sample_rng
from dataset.text import PlainTextProcessor, TextLimits, clean_caption, clean_question
from dataset.video import FrameSampler, VideoReadingConfig, VideoSource, check_backend
from utils.batch import Batch, BrokenRecord, MicroBatch
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
        tokenizer: see :class:`~dataset.text.PlainTextProcessor`.
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
        examples: list[E | None] = []
        broken: list[BrokenRecord] = []
        drawn = self.order.batch(number)
        for epoch, index in drawn:
            try:
                examples.append(self.example(index, sample_rng(self.seed, self.name, epoch, index)))
            except Exception as error:  # nothing in a record ends a run
                broken.append(broken_record(error, partial(self.place, index)))
                examples.append(None)
        places = [self.place(index) for _, index in drawn]
        try:
            return self._batch(examples, places, broken)
        except Exception:
            # Texts are tokenised here. Which example is to blame shows where each is collated alone.
            if not (failed := self._not_collated(examples, places)):
                raise
            examples = [None if number in failed else example for number, example in enumerate(examples)]
            return self._batch(examples, places, [*broken, *failed.values()])

    def _batch(self, examples: Sequence[E | None], places: Sequence[str], broken: Sequence[BrokenRecord]) -> Batch:
        """The batch of examples, with fillers for those that are None."""
        valid = [example is not None for example in examples]
        rows = [self.filler() if example is None else example for example in examples]
        records = tuple(place for place, counts in zip(places, valid, strict=True) if counts)
        return self.collate(rows, torch.tensor(valid), records=records, broken=tuple(broken), read=len(valid))

    def _not_collated(self, examples: Sequence[E | None], places: Sequence[str]) -> dict[int, BrokenRecord]:
        """The examples that cannot be collated, by their row."""
        failed = {}
        for row, example in enumerate(examples):
            try:
                self._batch([example], [places[row]], ())
            except Exception as error:
                failed[row] = broken_record(error, partial(places.__getitem__, row))
        return failed


def in_batches(
    read: Callable[[int], T],
    items: range,
    batch_size: int,
    workers: int,
    place: Callable[[int], str] = "held-out record {}".format,
) -> Iterator[list[T]]:
    """``read(item)`` of each item once, in order, in lists of ``batch_size``, read by worker processes; ``place``: of an item,
    for messages.

    Raises:
        UserError: for the first broken record: a held-out set must be whole, or its numbers mean something else.
    """
    chunks = _Chunks(read, items, batch_size, place)
    yield from in_workers(chunks, range(-(-len(items) // batch_size)), workers)


class _Chunks(Generic[T]):
    def __init__(self, read: Callable[[int], T], items: range, size: int, place: Callable[[int], str]):
        self.read, self.items, self.size, self.place = read, items, size, place

    def __call__(self, number: int) -> list[T]:
        made = []
        for item in self.items[number * self.size : (number + 1) * self.size]:
            try:
                made.append(self.read(item))
            except Exception as error:
                raise not_whole(error, partial(self.place, item)) from None
        return made


class TrainingView:
    """A picture as training sees it, (3, S, S) uint8, or frames of a video, (F, 3, S, S), each a view of its own.

    Args:
        image_size: S.
        max_pixels: see :class:`~dataset.pictures.Picture`.
        augment: what is done to each picture.
        videos: how frames are taken of videos; None where there are none.
        pixels: see :data:`~dataset.pictures.PixelsAre`.
    """

    def __init__(
        self,
        image_size: int,
        max_pixels: int,
        augment: AugmentConfig,
        videos: FrameSampler | None = None,
        *,
        pixels: PixelsAre = "shown",
    ):
        self.image_size, self.max_pixels, self.config, self.videos = image_size, max_pixels, augment, videos
        self.pixels: PixelsAre = pixels
        self.augment = RandAugment(augment.rand_augment_ops, augment.rand_augment_magnitude)

    def __call__(self, source: ImageSource | VideoSource, rng: np.random.Generator, *, may_flip: bool) -> Tensor:
        """Raises :class:`BrokenRecordError` where it cannot be read."""

        def look(image: Tensor | Picture, rng: np.random.Generator) -> Tensor:
            return training_view(image, self.image_size, self.config, self.augment, rng, may_flip=may_flip)

        if isinstance(source, VideoSource):
            assert self.videos is not None, "videos without a number of frames"
            return self.videos.training(source, rng, look)
        return look(Picture(source.load(), self.max_pixels, source.place, self.pixels), rng)

    def filler(self) -> Tensor:
        """A black view for a row that does not count."""
        image = black(self.image_size)
        return image if self.videos is None else image.expand(self.videos.frames, -1, -1, -1)


class EvaluationView:
    """A picture as evaluation sees it: the whole of it, (3, S, S) uint8; or whole frames of a video, (F, 3, S, S).

    With ``shuffle_frames`` the frames of a video are put into an order drawn from its place: what the model makes of them
    then shows how far it looks at their order.
    """

    def __init__(
        self,
        image_size: int,
        max_pixels: int,
        videos: FrameSampler | None = None,
        *,
        shuffle_frames: bool = False,
        pixels: PixelsAre = "shown",
    ):
        self.image_size, self.max_pixels = image_size, max_pixels
        self.pixels: PixelsAre = pixels
        self.videos, self.shuffle_frames = videos, shuffle_frames

    def __call__(self, source: ImageSource | VideoSource, size: tuple[int, int] | None = None) -> Tensor:
        """The view; ``size``: (width, height) that the annotations give a picture with boxes, which then is not turned.

        Raises:
            BrokenRecordError: the picture or video cannot be read, or is of another size.
        """
        if isinstance(source, VideoSource):
            assert self.videos is not None, "videos without a number of frames"
            frames = self.videos.evaluation(source, lambda frame: evaluation_view(frame, self.image_size))
            return _other_order(frames, source.place) if self.shuffle_frames else frames
        pixels = self.pixels if size is None else for_boxes(self.pixels)
        image = decode(source.load(), self.max_pixels, source.place, pixels)
        if size is not None:
            check_size(image, size, source.place)
        return evaluation_view(image, self.image_size)


def _other_order(frames: Tensor, place: str) -> Tensor:
    """The frames in an order that is never their own, where there are two at least."""
    count = len(frames)
    if count < 2:
        return frames
    rng = np.random.default_rng(zlib.crc32(place.encode()))
    while (order := rng.permutation(count)).tolist() == list(range(count)):
        pass
    return frames[torch.from_numpy(order)]


def check_medium(sources: Sequence[ImageSource | VideoSource], frames: int | None, key: str) -> None:
    """Raise a :class:`UserError` with the config ``key`` where data and model are not both of images or both of videos."""
    videos = sum(isinstance(source, VideoSource) for source in sources)
    if videos and frames is None:
        raise UserError(f"{key} holds videos, the model is one of images; set model.vision.video.frames")
    if frames is not None and videos < len(sources):
        raise UserError(f"{key} holds images, the model is one of videos; drop model.vision.video")


def media_view(
    data: MediaDataConfig, sources: Sequence[ImageSource | VideoSource], frames: int | None, image_size: int
) -> TrainingView:
    """How training sees ``sources``.

    Raises:
        UserError: as :func:`check_medium` and :func:`~dataset.video.check_backend`.
    """
    check_medium(sources, frames, "data.train")
    check_backend((each for each in sources if isinstance(each, VideoSource)), data.video, "data.video")
    return TrainingView(image_size, data.max_pixels, data.augment, frame_sampler(data, frames), pixels=data.pixels)


def frame_sampler(data: MediaDataConfig, frames: int | None) -> FrameSampler | None:
    """What takes ``frames`` of each video; None where the model is one of images."""
    return None if frames is None else FrameSampler(frames, data.video, data.max_pixels, data.pixels)


def check_size(image: Tensor | Picture, size: tuple[int, int], place: str) -> None:
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


def cleaned_question(text: str, max_words: int, place: str) -> str:
    """The question after the released clean-up, which is another than that of captions.

    Raises:
        BrokenRecordError: "empty text" where nothing is left of its first words.
    """
    found = clean_question(text, max_words)
    if not found.strip():
        raise BrokenRecordError("empty text", place, f"nothing is left of {text[:80]!r} after cleaning")
    return found


def black(size: int) -> Tensor:
    """A black picture for a row that does not count."""
    return torch.zeros(3, size, size, dtype=torch.uint8)


FILLER_TEXT = "a"
"""The text of a row that does not count."""
