"""Pre-training data: makes a :class:`~batches.pretraining.PretrainBatch` from the records of up to five streams."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from batches.pretraining import PretrainBatch
from dataset.config import (
    DataConfig,
)
from dataset.media.video import FrameSampler
from dataset.media.views import TrainingView
from dataset.shards.readers import Shards
from dataset.shards.samplers import RecordSource, sample_rng
from dataset.tasks.account import Account
from dataset.tasks.streams.base import open_source
from dataset.tasks.streams.pairs import ImageStream, VideoStream
from dataset.tasks.streams.regions import RegionStream
from dataset.tasks.streams.texts import TextStream, TranslationStream
from dataset.tasks.streams.wordings import HardNegativeCounts
from dataset.text.processors import TextProcessor
from utils.errors import UserError
from utils.image_size import ImageSize, sides_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


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
        if any(side % patch_size for side in sides_of(image_size)):
            raise UserError(
                f"image size {image_size} is not a multiple of patch size {patch_size}", remedy="change one of them"
            )
        self.text = TextProcessor(tokenizer, data.text, static=static)
        streams, clean_sets = data.streams(), data.clean_sets()
        sources = open_sources(data, seed, world_size, world_size * accumulate)
        self.steps = Steps({name: clean.probability for name, clean in clean_sets.items()}, data.matching_steps, seed)
        self.numbers_per_step = world_size * accumulate if clean_sets or data.matching_steps is not None else 1
        self.stream_sizes = {name: len(source) for name, source in sources.items()}
        self.examples_per_batch = sum(stream.batch_size for stream in streams.values())
        self.records_per_batch = data.records_per_batch
        self.images = self.regions = self.texts = self.videos = self.translations = None
        if data.images:
            both = (sources["images"], sources.get("images/clean"))
            view = TrainingView(image_size, data.max_pixels, data.images.augment, pixels=data.pixels)
            self.images = ImageStream(data.images, both, self.text, view)
        if data.videos:
            if frames is None:
                raise UserError(
                    "the model takes images only", where="data.videos", remedy="set model.vision.video.frames"
                )
            both = (sources["videos"], sources.get("videos/clean"))
            sampler = FrameSampler(frames, data.videos.reading, data.max_pixels, data.pixels)
            view = TrainingView(image_size, data.max_pixels, data.videos.augment, sampler)
            self.videos = VideoStream(data.videos, both, self.text, view)
        if data.regions:
            sizes = (image_size, patch_size)
            self.regions = RegionStream(
                data.regions, sources["regions"], self.text, sizes, data.max_pixels, data.pixels
            )
        if data.texts:
            self.texts = TextStream(data.texts, sources["texts"], self.text)
        if data.translations:
            own = data.translations.text
            text = self.text if own is None else TextProcessor(tokenizer, own, static=static)
            self.translations = TranslationStream(data.translations, sources["translations"], text)

    def count_hard_negatives(self) -> dict[str, HardNegativeCounts]:
        """For each stream with hard negatives, counts the texts with a hard negative in a sample of the stream's records."""
        streams: dict[str, ImageStream | RegionStream | None] = {"images": self.images, "regions": self.regions}
        return {
            name: stream.count_hard_negatives()
            for name, stream in streams.items()
            if stream is not None and stream.text_maker.hard_negatives is not None
        }

    def make(self, number: int) -> PretrainBatch:
        """Builds micro-batch ``number``, counted over all ranks."""
        account = Account()
        clean, unmatched = self.steps.draw(number // self.numbers_per_step)
        return PretrainBatch(
            images=self.images.batch(number, "images" in clean, account) if self.images else None,
            videos=self.videos.batch(number, "videos" in clean, account) if self.videos else None,
            unmatched=tuple(stream for stream in unmatched if getattr(self, stream) is not None),
            regions=self.regions.batch(number, account) if self.regions else None,
            texts=self.texts.batch(number, account) if self.texts else None,
            translations=self.translations.batch(number, account) if self.translations else None,
            **account.fields(),
        )


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


def open_sources(data: DataConfig, seed: int, ranks: int, step: int) -> dict[str, RecordSource]:
    """Opens the records of each stream. The clean set of a stream is named ``<name>/clean``.

    Raises:
        UserError: if there are no files or no records, or for the reasons listed in
            :meth:`~dataset.tasks.streams.base.StreamConfig.open`.

    Args:
        step: number of micro-batches in a global batch, over all ``ranks``.
    """
    streams = data.streams()
    files = {name: stream.paths for name, stream in streams.items()}
    files |= {f"{name}/clean": clean.files for name, clean in data.clean_sets().items()}
    sources = {}
    for name, own in files.items():
        stream = streams[name.removesuffix("/clean")]
        shards = Shards(
            own, key=f"data.{name.replace('/', '.')}.files", index_folder=data.cache_index, remote=data.remote
        )
        sources[name] = open_source(stream, shards, name=name, seed=seed, ranks=ranks, step=step)
    return sources
