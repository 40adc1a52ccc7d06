"""Pre-training data: makes a :class:`~batches.pretraining.PretrainBatch` from the records of up to five streams."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, model_validator

from batches.base import MicroBatch
from batches.pretraining import LONG, PretrainBatch
from dataset.loaders import LoadingConfig
from dataset.media.video import FrameSampler
from dataset.media.views import TrainingView
from dataset.shards.blocks import check_ranks
from dataset.shards.readers import Shards
from dataset.shards.remote.server import RemoteConfig
from dataset.shards.samplers import RecordSource, sample_rng
from dataset.tasks.account import Account
from dataset.tasks.streams.base import CleanSetConfig, ImageRecordsConfig
from dataset.tasks.streams.pairs import ImageStream, ImageStreamConfig, VideoStream, VideoStreamConfig
from dataset.tasks.streams.regions import RegionStream, RegionStreamConfig
from dataset.tasks.streams.texts import TextStream, TextStreamConfig, TranslationStream, TranslationStreamConfig
from dataset.tasks.streams.wordings import HardNegativeCounts
from dataset.text.processors import TextDataConfig, TextProcessor
from utils.addresses import is_hub, is_url
from utils.config import MAY_CHANGE
from utils.errors import UserError
from utils.image_size import ImageSize, sides_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


MATCHED_STREAMS = ("images", "videos", "regions")
"""Streams that have a matching loss."""


AnyStreamConfig = (
    ImageStreamConfig | RegionStreamConfig | VideoStreamConfig | TextStreamConfig | TranslationStreamConfig
)


class DataConfig(LoadingConfig):
    """The data of pre-training: its streams, mixed in every micro-batch."""

    text: TextDataConfig = Field(default_factory=TextDataConfig, description="truncation and masking of all texts")
    images: ImageStreamConfig | None = Field(None, description="image-text pairs")
    regions: RegionStreamConfig | None = Field(None, description="images with described boxes")
    videos: VideoStreamConfig | None = Field(None, description="video-text pairs")
    texts: TextStreamConfig | None = Field(None, description="texts without images")
    translations: TranslationStreamConfig | None = Field(None, description="texts with their translations")
    matching_steps: int | None = Field(
        None,
        ge=0,
        description="number of steps with a matching loss; later steps have no matching loss in any stream; null: all steps",
    )
    cache_index: Annotated[str | None, MAY_CHANGE] = Field(
        None, description="folder of shard indexes; null: the user's cache folder"
    )
    remote: Annotated[RemoteConfig, MAY_CHANGE] = Field(
        default_factory=RemoteConfig, description="shards at URLs, and the cache of Parquet shards"
    )

    @model_validator(mode="after")
    def _has_a_stream(self) -> DataConfig:
        if not self.streams():
            raise ValueError(
                "no stream is configured; set at least one of images, regions, videos, texts, translations"
            )
        return self

    @model_validator(mode="after")
    def _workers_wait_longer_than_requests(self) -> DataConfig:
        minutes, seconds = self.remote.retry_minutes, self.worker_timeout_s
        if (
            self.workers
            and minutes * 60 >= seconds
            and any(is_url(entry) or is_hub(entry) for entry in self._entries())
        ):
            raise ValueError(
                f"remote.retry_minutes = {minutes:g} is {minutes * 60:g} s, and worker_timeout_s = {seconds:g}: a worker would "
                "be killed while it retries a request; lower remote.retry_minutes, or raise worker_timeout_s"
            )
        return self

    def _entries(self) -> list[str]:
        """Returns the ``files`` entries of all streams and clean sets."""
        own = [entry for stream in self.streams().values() for entry in stream.paths]
        return own + [entry for clean in self.clean_sets().values() for entry in clean.files]

    @property
    def micro_batch(self) -> MicroBatch:
        """The micro-batch of the leading stream."""
        name, stream = next(iter(self.streams().items()))
        return MicroBatch(f"data.{name}.batch_size", stream.batch_size)

    @property
    def records_per_batch(self) -> int:
        """Number of records of the leading stream that a rank reads for a micro-batch."""
        return next(iter(self.streams().values())).records_per_batch

    def check_ranks(self, ranks: int) -> None:
        for name, stream in self.streams().items():
            if stream.lanes is not None:
                check_ranks(stream.lanes, ranks, f"data.{name}.lanes")

    def streams(self) -> dict[str, AnyStreamConfig]:
        """Returns the configured streams by name."""
        named = {
            "images": self.images,
            "regions": self.regions,
            "videos": self.videos,
            "texts": self.texts,
            "translations": self.translations,
        }
        return {name: stream for name, stream in named.items() if stream is not None}

    def loss_weights(self) -> dict[str, float]:
        """Returns the loss weight of each stream. Long captions with separate losses count as a separate stream."""
        streams = self.streams()
        with_long = [
            name for name, each in streams.items() if isinstance(each, ImageRecordsConfig) and each.captions == "both"
        ]
        return {name: each.weight for name, each in streams.items()} | {
            LONG + name: streams[name].weight for name in with_long
        }

    def clean_sets(self) -> dict[str, CleanSetConfig]:
        """Returns the clean sets by the name of their stream."""
        paired = {"images": self.images, "videos": self.videos}
        return {
            name: stream.clean for name, stream in paired.items() if stream is not None and stream.clean is not None
        }


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
            raise UserError(f"image size {image_size} is not a multiple of patch size {patch_size}; change one of them")
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
                raise UserError("data.videos: the model takes images only; set model.vision.video.frames")
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
        sources[name] = stream.open(shards, name=name, seed=seed, ranks=ranks, step=step)
    return sources
