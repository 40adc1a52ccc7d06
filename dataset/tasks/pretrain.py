"""Pre-training data: makes a :class:`~batches.pretraining.PretrainBatch` from the records of up to five streams."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from batches.pretraining import PretrainBatch
from dataset.config import (
    DataConfig,
    ImageStreamConfig,
    RegionStreamConfig,
    StreamConfig,
    TextStreamConfig,
    TranslationStreamConfig,
    VideoStreamConfig,
)
from dataset.examples import Account, RecordStream
from dataset.media.video import FrameSampler
from dataset.media.views import TrainingView
from dataset.records.schema import RawRecord
from dataset.shards.samplers import sample_rng
from dataset.tasks.streams.opening import open_streams
from dataset.tasks.streams.pairs import ImageStream, VideoStream
from dataset.tasks.streams.regions import RegionStream
from dataset.tasks.streams.texts import TextStream, TranslationStream
from dataset.tasks.streams.wordings import HardNegativeCounts
from dataset.text.processors import TextProcessor
from utils.errors import UserError
from utils.image_size import ImageSize, sides_for

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


Stream = ImageStream | VideoStream | RegionStream | TextStream | TranslationStream

MATCHED_STREAMS = ("images", "videos", "regions")
"""Streams that have a matching loss."""


class PretrainBatches:
    """Builds micro-batch u of a run as a function of the data, the seed and u.

    With ``order: blocks``, and with clean sets, which are drawn for whole steps, a micro-batch also depends on the number of
    micro-batches per step.

    Args:
        data: the streams.
        tokenizer: see :class:`~dataset.text.processors.TextProcessor`.
        image_size: side of the input in pixels, or its height and width.
        patch_size: side of a patch; the sides of the input must be multiples of it.
        seed: seed of order, augmentation and masking.
        world_size: number of processes that share the data.
        frames: number of frames per video; None for an image model.
        accumulate: number of micro-batches of a process per step.
        static: make batches with few different shapes (see :class:`~dataset.text.processors.TextProcessor`).

    Raises:
        UserError: if there are no files or no records, the number of ranks does not divide the number of lanes, or sizes do not
            match. The message is one line that names the config key.
    """

    def __init__(
        self,
        data: DataConfig,
        *,
        tokenizer: PreTrainedTokenizerFast,
        image_size: ImageSize,
        patch_size: int,
        seed: int,
        world_size: int = 1,
        frames: int | None = None,
        accumulate: int = 1,
        static: bool = False,
    ):
        if any(side % patch_size for side in sides_for(image_size, 1, 1)):
            raise UserError(
                f"image size {image_size} is not a multiple of patch size {patch_size}", remedy="change one of them"
            )
        if data.videos is not None and frames is None:
            raise UserError("the model takes images only", where="data.videos", remedy="set model.vision.video.frames")
        self.data, self.image_size, self.patch_size, self.frames = data, image_size, patch_size, frames
        self.text = TextProcessor(tokenizer, data.text, static=static)
        records = open_streams(data, seed, world_size, world_size * accumulate)
        self.streams = {
            name: self._stream(config, records[name], tokenizer) for name, config in data.record_sets().items()
        }
        """The streams by name. The clean set of a stream is a separate stream, ``<name>/clean``."""
        self.steps = Steps(
            {name: clean.probability for name, clean in data.clean_sets().items()}, data.matching_steps, seed
        )
        steps_differ = data.clean_sets() or data.matching_steps is not None or data.losses_from
        self.numbers_per_step = world_size * accumulate if steps_differ else 1
        self.stream_sizes = {name: len(stream) for name, stream in records.items()}
        self.examples_per_batch = sum(stream.batch_size for stream in data.streams().values())
        self.records_per_batch = data.records_per_batch

    def _stream(
        self, config: StreamConfig, records: RecordStream[RawRecord], tokenizer: PreTrainedTokenizerFast
    ) -> Stream:
        """Returns the stream that makes batches of records."""
        data = self.data
        if isinstance(config, ImageStreamConfig):
            view = TrainingView(self.image_size, data.max_pixels, config.augment, pixels=data.pixels)
            return ImageStream(config, records, self.text, view)
        if isinstance(config, VideoStreamConfig):
            assert self.frames is not None
            sampler = FrameSampler(self.frames, config.reading, data.max_pixels, data.pixels)
            return VideoStream(
                config, records, self.text, TrainingView(self.image_size, data.max_pixels, config.augment, sampler)
            )
        if isinstance(config, RegionStreamConfig):
            sizes = (self.image_size, self.patch_size)
            return RegionStream(config, records, self.text, sizes, data.max_pixels, data.pixels)
        if isinstance(config, TextStreamConfig):
            return TextStream(config, records, self.text)
        assert isinstance(config, TranslationStreamConfig)
        own = config.text
        text = self.text if own is None else TextProcessor(tokenizer, own, static=self.text.static)
        return TranslationStream(config, records, text)

    @property
    def regions(self) -> RegionStream | None:
        """The stream of images with described boxes, if there is one."""
        stream = self.streams.get("regions")
        return stream if isinstance(stream, RegionStream) else None

    def count_hard_negatives(self) -> dict[str, HardNegativeCounts]:
        """For each stream with hard negatives, counts the texts with a hard negative in a sample of the stream's records."""
        return {
            name: stream.count_hard_negatives()
            for name, stream in self.streams.items()
            if isinstance(stream, ImageStream | RegionStream)
            and stream.text_maker.hard_negatives is not None
            and not name.endswith("/clean")
        }

    def make(self, number: int) -> PretrainBatch:
        """Builds micro-batch ``number``, counted over all ranks."""
        account = Account()
        step = number // self.numbers_per_step
        clean, unmatched = self.steps.draw(step)
        parts: dict[str, Any] = {
            name: self.streams[f"{name}/clean" if name in clean else name].batch(number, account)
            for name in self.streams
            if not name.endswith("/clean")
        }
        unmatched = tuple(name for name in unmatched if name in parts)
        not_started = tuple(loss for loss, first_step in self.data.losses_from.items() if step < first_step)
        return PretrainBatch(**parts, unmatched=unmatched, not_started=not_started, **account.fields())


class Steps:
    """Makes random decisions for whole steps. They depend only on the seed and the step, so all ranks agree.

    Args:
        clean: probability of using the clean set, for each stream that has one.
        matching_steps: number of steps with a matching loss; if None, all steps have one.
        seed: seed of the run.
    """

    def __init__(self, clean: Mapping[str, float], matching_steps: int | None, seed: int):
        self.clean, self.matching_steps, self.seed = clean, matching_steps, seed

    def draw(self, step: int) -> tuple[set[str], tuple[str, ...]]:
        """Returns the streams that use their clean set in a step, and the streams without a matching loss in that step.

        As in the authors' code, no stream has a matching loss in steps that read noisy images, because the model would learn that
        wrong pairs match. If only the videos are noisy, only the videos have no matching loss.
        """
        taken = {
            name
            for name, share in self.clean.items()
            if sample_rng(self.seed, f"{name}/clean", 0, step).random() < share
        }
        noisy = self.clean.keys() - taken
        if "images" in noisy or (self.matching_steps is not None and step >= self.matching_steps):
            return taken, MATCHED_STREAMS
        return taken, tuple(stream for stream in MATCHED_STREAMS if stream in noisy)
