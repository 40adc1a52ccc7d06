"""Pre-training data: records of up to five streams to examples to one :class:`~utils.batch.PretrainBatch`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from dataset.clips import VideoRecord, choose_clip, parse_video_record
from dataset.finetune import TrainingView, black
from dataset.images import AugmentConfig, RandAugment, RegionAugmentConfig, decode, hflip, resize
from dataset.loaders import LoadingConfig
from dataset.readers import Shards
from dataset.records import (
    Box,
    BrokenRecordError,
    Element,
    ImageIs,
    ImageKeys,
    RawRecord,
    RegionRecord,
    parse_image_record,
    parse_pair_record,
    parse_region_record,
    parse_text_record,
)
from dataset.regions import WHOLE_BOX, elements_inside, flip_box, patch_mask, visible_elements
from dataset.samplers import OrderName, RecordSource, sample_rng
from dataset.text import TextDataConfig, TextExample, TextProcessor, clean_caption, mentions_side
from dataset.video import FrameSampler, VideoReadingConfig, VideoSource, check_backend
from utils.batch import (
    BrokenRecord,
    ImageTextBatch,
    MaskedText,
    PretrainBatch,
    RegionBatch,
    Text,
    TextBatch,
    TextPairBatch,
    VideoTextBatch,
)
from utils.config import Config
from utils.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


PAIRED = ("images", "videos", "regions")
"""The streams that have a matching loss."""


class StreamConfig(Config):
    """What every stream has."""

    files: list[str] = Field(
        description="Shards: files, glob patterns, or folders of *.jsonl, *.json (JSON lines) and *.tar."
    )
    batch_size: int = Field(ge=1, description="Rows of the stream in a micro-batch of one process.")
    weight: float = Field(1.0, ge=0, description="Factor of the stream's losses in the sum.")
    order: OrderName = Field(
        "random", description="random: any record next; sequential: whole shards dealt to ranks, for slow disks."
    )


class PictureStreamConfig(StreamConfig):
    """A stream whose records have a picture."""

    image_key: str = Field("image", description="Key of the picture in a JSON record.")
    image_is: ImageIs = Field(
        "auto", description="path, base64 (of the encoded file), or auto: told apart by its start."
    )
    image_root: str | None = Field(None, description="Folder of relative paths; null = the folder of the shard.")
    caption_key: str = Field("caption", description="Key of the caption of the whole picture.")

    def keys(self) -> ImageKeys:
        """How to find a record's picture."""
        root = Path(self.image_root).expanduser() if self.image_root is not None else None
        return ImageKeys(self.image_key, self.image_is, root)


class CleanSetConfig(Config):
    """A smaller set of better pairs, from which a whole step is taken at times; the other steps are the noisy ones, which have no
    matching loss (released for the 1B set)."""

    files: list[str] = Field(description="Shards, as of the stream.")
    probability: float = Field(gt=0, lt=1, description="Chance of a step to be taken from this set.")
    caption_key: str | None = Field(None, description="Key of the caption; null: the stream's.")


class ImageStreamConfig(PictureStreamConfig):
    """Image-text pairs."""

    clean: CleanSetConfig | None = Field(
        None, description="Clean pairs; on steps without them no stream has a matching loss."
    )

    augment: AugmentConfig = Field(default_factory=AugmentConfig, description="Augmentation of the pictures.")
    careful_flip: bool = Field(False, description="Do not flip where the caption says left or right (released: flips).")


class RegionStreamConfig(PictureStreamConfig):
    """Pictures with described boxes; a row is a text with its box, or the picture's whole caption."""

    max_images: int = Field(
        ge=1, description="Records read for a micro-batch; rows beyond batch_size are dropped at random."
    )
    max_regions: int = Field(5, ge=1, description="Most rows of one picture, the whole caption included.")
    min_inside: float = Field(
        0.5, ge=0, lt=1, description="Share of its area that a box must keep in the crop, exclusive."
    )
    careful_flip: bool = Field(
        True, description="Do not flip where a used text says left or right (released 4M: flips)."
    )
    crop: bool = Field(True, description="Crop at random around one of the boxes; false = the whole picture.")
    whole_image_rows: bool = Field(
        True, description="Use the caption of the whole picture as a row where there is one."
    )
    augment: RegionAugmentConfig = Field(default_factory=RegionAugmentConfig, description="Flip and colours.")


class VideoStreamConfig(StreamConfig):
    """Video-text pairs, of as many frames as ``model.vision.video.frames``."""

    video_key: str = Field("video", description="Key of the frames, or of the path, in a record.")
    video_root: str | None = Field(None, description="Folder of relative paths; null = the folder of the shard.")
    caption_key: str = Field("caption", description="Key of the caption, or of one for each clip.")
    join_clips: bool = Field(True, description="Join neighbouring clips of a continuous video.")
    min_frames: int = Field(8, ge=1, description="Join clips until they have so many frames.")
    augment: AugmentConfig = Field(default_factory=AugmentConfig, description="Augmentation of the frames.")
    careful_flip: bool = Field(False, description="Do not flip where the caption says left or right (released: flips).")
    reading: VideoReadingConfig = Field(default_factory=VideoReadingConfig, description="How videos are read.")
    clean: CleanSetConfig | None = Field(
        None, description="Clean pairs; on steps without them this stream has no matching loss."
    )


class TextStreamConfig(StreamConfig):
    """Texts without pictures."""

    text_key: str = Field("text", description="Key of the text in a JSON record.")


class TextPairStreamConfig(StreamConfig):
    """Texts and their translations, in either direction."""

    source_key: str = Field("source_text", description="Key of a text in a JSON record.")
    target_key: str = Field("target_text", description="Key of its translation.")
    text: TextDataConfig | None = Field(
        None, description="Cutting and masking of these texts; null = that of all others."
    )


AnyStreamConfig = ImageStreamConfig | RegionStreamConfig | VideoStreamConfig | TextStreamConfig | TextPairStreamConfig


class DataConfig(LoadingConfig):
    """The data of pre-training: its streams, mixed in every micro-batch."""

    text: TextDataConfig = Field(default_factory=TextDataConfig, description="Cutting and masking of all texts.")
    images: ImageStreamConfig | None = Field(None, description="Image-text pairs.")
    regions: RegionStreamConfig | None = Field(None, description="Pictures with described boxes.")
    videos: VideoStreamConfig | None = Field(None, description="Video-text pairs.")
    texts: TextStreamConfig | None = Field(None, description="Texts alone.")
    pairs: TextPairStreamConfig | None = Field(None, description="Texts with their translations.")
    matching_steps: int | None = Field(
        None, ge=0, description="Steps after which no stream has a matching loss any more; null: all have one."
    )
    cache_index: str | None = Field(None, description="Folder of shard indexes; null = the user's cache folder.")

    @model_validator(mode="after")
    def _has_a_stream(self) -> DataConfig:
        if not self.streams():
            raise ValueError("no stream is configured; give at least one of images, regions, videos, texts, pairs")
        return self

    def streams(self) -> dict[str, AnyStreamConfig]:
        """The configured streams by name."""
        named = {
            "images": self.images,
            "regions": self.regions,
            "videos": self.videos,
            "texts": self.texts,
            "pairs": self.pairs,
        }
        return {name: stream for name, stream in named.items() if stream is not None}


@dataclass
class Report:
    """What happened while a batch was made."""

    places: list[str] = field(default_factory=list)
    broken: list[BrokenRecord] = field(default_factory=list)
    read: int = 0


@dataclass(frozen=True)
class RegionRow:
    """One text of a picture: its relative box (cx, cy, w, h) and the patches (P,) that it covers."""

    text: TextExample
    box: Box
    patch_mask: Tensor
    is_image: bool


class PretrainBatches:
    """Micro-batch number u of a run, as a function of u alone (and of data, seed and, in sequential order, ranks; with clean
    sets, which are drawn for whole steps, of the micro-batches in a step too).

    Args:
        data: the streams.
        tokenizer: see :class:`~dataset.text.TextProcessor`.
        image_size: side of the input in pixels.
        patch_size: side of a patch; must divide ``image_size``.
        seed: of order, augmentation and masking.
        world_size: processes that share the data.
        frames: of a video; None where the model is one of images.
        accumulate: micro-batches of a process in a step.

    Raises:
        UserError: in one line, naming the config key: no files, no records, fewer shards than ranks, sizes that do not fit.
    """

    def __init__(
        self,
        data: DataConfig,
        *,
        tokenizer: PreTrainedTokenizerFast,
        image_size: int,
        patch_size: int,
        seed: int,
        world_size: int = 1,
        frames: int | None = None,
        accumulate: int = 1,
    ):
        if image_size % patch_size:
            raise UserError(f"image size {image_size} is not a multiple of patch size {patch_size}; change one of them")
        self.text = TextProcessor(tokenizer, data.text)
        streams = data.streams()
        cleans = {name: stream.clean for name, stream in streams.items() if _may_be_clean(stream) and stream.clean}

        def source(name: str, files: list[str]) -> RecordSource:
            stream = streams[name.removesuffix("/clean")]
            return RecordSource(
                Shards(files, key=f"data.{name.replace('/', '.')}.files", index_folder=data.cache_index),
                _records_per_batch(stream),
                order=stream.order,
                name=name,
                seed=seed,
                world_size=world_size,
            )

        sources = {name: source(name, stream.files) for name, stream in streams.items()}
        sources |= {f"{name}/clean": source(f"{name}/clean", clean.files) for name, clean in cleans.items()}
        self.steps = Steps({name: clean.probability for name, clean in cleans.items()}, data.matching_steps, seed)
        self.numbers_per_step = world_size * accumulate if cleans or data.matching_steps is not None else 1
        self.stream_sizes = {name: len(source.shards) for name, source in sources.items()}
        self.rows_per_batch = sum(stream.batch_size for stream in streams.values())
        self.records_per_batch = _records_per_batch(next(iter(streams.values())))
        self.images = self.regions = self.texts = self.videos = self.pairs = None
        if data.images:
            both = (sources["images"], sources.get("images/clean"))
            view = TrainingView(image_size, data.max_pixels, data.images.augment)
            self.images = _ImageStream(data.images, both, self.text, view)
        if data.videos:
            if frames is None:
                raise UserError("data.videos: the model is one of images; set model.vision.video.frames")
            both = (sources["videos"], sources.get("videos/clean"))
            sampler = FrameSampler(frames, data.videos.reading, data.max_pixels)
            view = TrainingView(image_size, data.max_pixels, data.videos.augment, sampler)
            self.videos = _VideoStream(data.videos, both, self.text, view)
        if data.regions:
            sizes = (image_size, patch_size)
            self.regions = _RegionStream(data.regions, sources["regions"], self.text, sizes, data.max_pixels)
        if data.texts:
            self.texts = _TextStream(data.texts, sources["texts"], self.text)
        if data.pairs:
            text = TextProcessor(tokenizer, data.pairs.text) if data.pairs.text else self.text
            self.pairs = _TextPairStream(data.pairs, sources["pairs"], text)

    def make(self, number: int) -> PretrainBatch:
        """Micro-batch ``number``, counted over all ranks."""
        report = Report()
        clean, unmatched = self.steps.draw(number // self.numbers_per_step)
        return PretrainBatch(
            images=self.images.batch(number, "images" in clean, report) if self.images else None,
            videos=self.videos.batch(number, "videos" in clean, report) if self.videos else None,
            unmatched=tuple(stream for stream in unmatched if getattr(self, stream) is not None),
            regions=self.regions.batch(number, report) if self.regions else None,
            texts=self.texts.batch(number, report) if self.texts else None,
            pairs=self.pairs.batch(number, report) if self.pairs else None,
            records=tuple(report.places),
            broken=tuple(report.broken),
            read=report.read,
        )


class Steps:
    """What is drawn for whole steps, from seed and step alone, so that all ranks agree.

    Args:
        clean: the chance of each stream that has a clean set to be taken from it.
        matching_steps: steps after which there is no matching loss; None: there always is.
        seed: of the run.
    """

    def __init__(self, clean: Mapping[str, float], matching_steps: int | None, seed: int):
        self.clean, self.matching_steps, self.seed = clean, matching_steps, seed

    def draw(self, step: int) -> tuple[set[str], tuple[str, ...]]:
        """The streams that take a step from their clean set, and those that have no matching loss in it.

        Where images are noisy no stream has one (released: wrong pairs would be taught as right ones); where videos are, they
        have none.
        """
        taken = {
            name
            for name, share in self.clean.items()
            if sample_rng(self.seed, f"{name}/clean", 0, step).random() < share
        }
        noisy = self.clean.keys() - taken
        if "images" in noisy or (self.matching_steps is not None and step >= self.matching_steps):
            return taken, PAIRED
        return taken, tuple(stream for stream in PAIRED if stream in noisy)


class _PairStream(ABC):
    """Pictures or videos, a text for each.

    Args:
        sources: of the noisy set, and of the clean one if there is one.
        text: of the captions.
        view: of the pictures.
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

    def rows(self, number: int, clean: bool, report: Report) -> tuple[Tensor, MaskedText, Tensor]:
        """Pixels, texts, and which rows count, of micro-batch ``number``."""
        source = self.sources[clean]
        assert source is not None
        pixels, texts, valid = [], [], []
        for index, rng in source.samples(number):
            report.read += 1
            try:
                raw = source.shards.read(index)
                view, text = self.example(raw, self.caption_keys[clean], rng)
                report.places.append(raw.place)
                valid.append(True)
            except BrokenRecordError as error:
                report.broken.append(error.as_broken())
                view, text = self.view.filler(), self.text.filler()
                valid.append(False)
            pixels.append(view)
            texts.append(text)
        return torch.stack(pixels), self.text.collate(texts), torch.tensor(valid)

    def may_flip(self, text: str) -> bool:
        """Whether the text stays true of a mirrored picture, as far as the config cares."""
        return not (self.careful_flip and mentions_side(text))

    @abstractmethod
    def example(self, raw: RawRecord, caption_key: str, rng: np.random.Generator) -> tuple[Tensor, TextExample]:
        """The view and the text of a record.

        Raises:
            BrokenRecordError: there are none.
        """


class _ImageStream(_PairStream):
    def __init__(self, config: ImageStreamConfig, *made: Any):
        super().__init__(config, *made)
        self.keys = config.keys()

    def batch(self, number: int, clean: bool, report: Report) -> ImageTextBatch:
        return ImageTextBatch(*self.rows(number, clean, report))

    def example(self, raw: RawRecord, caption_key: str, rng: np.random.Generator) -> tuple[Tensor, TextExample]:
        record = parse_image_record(raw, self.keys, caption_key)
        text = self.text.choose(record.captions, rng, record.place)
        view = self.view(record.image, rng, may_flip=self.may_flip(text))
        return view, self.text.encode(text, rng)


class _VideoStream(_PairStream):
    def __init__(self, config: VideoStreamConfig, *made: Any):
        super().__init__(config, *made)
        self.config = config
        self.root = Path(config.video_root).expanduser() if config.video_root is not None else None
        check_backend(self._first_clips(), config.reading, "data.videos.reading")

    def _first_clips(self) -> Iterator[VideoSource]:
        """The clips of the first record of each shard: whether these are files says whether a decoder is needed."""
        for source, caption_key in zip(self.sources, self.caption_keys, strict=True):
            if source is None:
                continue
            for first in source.shards.starts:
                try:
                    yield from self._record(source.shards.read(first), caption_key).clips
                except BrokenRecordError:
                    continue  # told when its turn comes

    def _record(self, raw: RawRecord, caption_key: str) -> VideoRecord:
        return parse_video_record(raw, self.config.video_key, caption_key, self.root)

    def batch(self, number: int, clean: bool, report: Report) -> VideoTextBatch:
        return VideoTextBatch(*self.rows(number, clean, report))

    def example(self, raw: RawRecord, caption_key: str, rng: np.random.Generator) -> tuple[Tensor, TextExample]:
        record = self._record(raw, caption_key)
        join, frames = self.config.join_clips, self.config.min_frames
        source, captions = choose_clip(record, rng, join=join, min_frames=frames)
        said = [self.text.choose(texts, rng, record.place) for texts in captions]
        text = clean_caption(" ".join(said), self.text.max_words)
        view = self.view(source, rng, may_flip=self.may_flip(text))
        return view, self.text.encode(text, rng)


class _RegionStream:
    def __init__(
        self,
        config: RegionStreamConfig,
        source: RecordSource,
        text: TextProcessor,
        view: tuple[int, int],
        max_pixels: int,
    ):
        self.config, self.source, self.text = config, source, text
        self.image_size, self.patch_size = view
        self.max_pixels = max_pixels
        self.keys = config.keys()
        augment = config.augment
        self.rand_augment = RandAugment(augment.rand_augment_ops, augment.rand_augment_magnitude, colour_only=True)

    def batch(self, number: int, report: Report) -> RegionBatch:
        images: list[Tensor] = []
        rows: list[tuple[int, RegionRow]] = []
        for index, rng in self.source.samples(number):
            report.read += 1
            try:
                raw = self.source.shards.read(index)
                image, own_rows = self._example(raw, rng, report)
            except BrokenRecordError as error:
                report.broken.append(error.as_broken())
                continue
            if own_rows:
                report.places.append(raw.place)
            rows += [(len(images), row) for row in own_rows]
            images.append(image)
        if len(rows) > self.config.batch_size:
            rng = sample_rng(self.source.seed, "regions/rows", 0, number)
            kept = rng.choice(len(rows), self.config.batch_size, replace=False)
            rows = [rows[row] for row in sorted(kept.tolist())]
        return self._collate(images, rows)

    def _collate(self, images: list[Tensor], rows: list[tuple[int, RegionRow]]) -> RegionBatch:
        """Rows in the order of their images; images without rows are left out; missing rows are filled, not valid.

        Fillers go to the images with the fewest rows: the largest number of rows of one image sizes the attention of all.
        """
        used = sorted({image for image, _ in rows})
        pixels = [images[image] for image in used] or [black(self.image_size)]
        renumbered = {image: place for place, image in enumerate(used)}
        laid = [(renumbered[image], True, row) for image, row in rows]
        counts = np.bincount([image for image, _, _ in laid], minlength=len(pixels))
        for _ in range(self.config.batch_size - len(rows)):
            image = int(counts.argmin())
            counts[image] += 1
            laid.append((image, False, self._whole(self.text.filler())))
        laid.sort(key=lambda entry: entry[0])
        image_index, all_rows = [image for image, _, _ in laid], [row for _, _, row in laid]
        return RegionBatch(
            pixels=torch.stack(pixels),
            image_index=torch.tensor(image_index),
            max_rows_per_image=int(counts.max()),
            patch_mask=torch.stack([row.patch_mask for row in all_rows]),
            boxes_cxcywh=torch.tensor([row.box for row in all_rows], dtype=torch.float32),
            is_image=torch.tensor([row.is_image for row in all_rows]),
            text=self.text.collate([row.text for row in all_rows]),
            valid=torch.tensor([valid for _, valid, _ in laid]),
        )

    def _example(self, raw: RawRecord, rng: np.random.Generator, report: Report) -> tuple[Tensor, list[RegionRow]]:
        """The picture (3, S, S) and its rows; unusable parts of the record go to the report.

        Raises:
            BrokenRecordError: where no row is left and no part has been reported.
        """
        record = parse_region_record(raw, self.keys, self.config.caption_key)
        image = decode(record.image.load(), self.max_pixels, record.place)
        height, width = image.shape[1:]
        broken = list(record.broken)
        caption = self._caption(record, rng, broken)
        elements, outside = elements_inside(record, width, height)
        broken += outside
        crop, found = visible_elements(
            elements,
            (width, height),
            rng,
            crop=self.config.crop,
            most=self.config.max_regions - len(caption),
            min_inside=self.config.min_inside,
        )
        texts = [self._element_text(element, record.place, rng, broken) for element, _ in found]
        report.broken += broken
        image = resize(crop.of(image), self.image_size)
        flip = rng.random() < self.config.augment.flip
        used = [text for text in (*caption, *texts) if text is not None]
        if flip and not (self.config.careful_flip and any(mentions_side(text) for text in used)):
            image = hflip(image)
            found = [(element, flip_box(box)) for element, box in found]
        rows = [self._whole(self.text.encode(text, rng)) for text in caption]
        for text, (_, box) in zip(texts, found, strict=True):
            if text is not None:
                rows.append(self._row(self.text.encode(text, rng), box))
        if not rows and not broken:
            kind, why = (
                ("degenerate box", "every box is a sliver") if elements else ("missing key", "no element to use")
            )
            raise BrokenRecordError(kind, record.place, why)  # type: ignore[arg-type]
        return self.rand_augment(image, rng), rows

    def _caption(self, record: RegionRecord, rng: np.random.Generator, broken: list[BrokenRecord]) -> list[str]:
        """The whole picture's text, if there is one to use: at most one."""
        if not (self.config.whole_image_rows and record.captions):
            return []
        try:
            return [self.text.choose(record.captions, rng, record.place)]
        except BrokenRecordError as error:
            broken.append(error.as_broken())
            return []

    def _element_text(
        self, element: Element, place: str, rng: np.random.Generator, broken: list[BrokenRecord]
    ) -> str | None:
        """A caption with a random attribute before it, where there are attributes; their languages are drawn apart."""
        try:
            text = self.text.choose(element.captions, rng, place)
            if element.attributes:
                text = clean_caption(f"{self.text.choose(element.attributes, rng, place)} {text}", self.text.max_words)
        except BrokenRecordError as error:
            broken.append(BrokenRecord(error.kind, place, f"{element.name}: {error.message}"))
            return None
        return text

    def _row(self, text: TextExample, box: Box) -> RegionRow:
        cx, cy, w, h = (side * self.image_size for side in box)
        mask = patch_mask((cx - w / 2, cy - h / 2, w, h), self.image_size, self.patch_size)
        return RegionRow(text, box, mask, is_image=False)

    def _whole(self, text: TextExample) -> RegionRow:
        grid = self.image_size // self.patch_size
        return RegionRow(text, WHOLE_BOX, torch.ones(grid * grid, dtype=torch.bool), is_image=True)


class _TextStream:
    def __init__(self, config: TextStreamConfig, source: RecordSource, text: TextProcessor):
        self.config, self.source, self.text = config, source, text

    def batch(self, number: int, report: Report) -> TextBatch:
        texts, valid = [], []
        for index, rng in self.source.samples(number):
            report.read += 1
            try:
                record = parse_text_record(self.source.shards.read(index), self.config.text_key)
                texts.append(self.text.encode(self.text.choose(record.texts, rng, record.place), rng))
                report.places.append(record.place)
                valid.append(True)
            except BrokenRecordError as error:
                report.broken.append(error.as_broken())
                texts.append(self.text.filler())
                valid.append(False)
        return TextBatch(self.text.collate(texts), torch.tensor(valid))


class _TextPairStream:
    """Of each pair one text is masked, at random (as released), and the other one is whole."""

    def __init__(self, config: TextPairStreamConfig, source: RecordSource, text: TextProcessor):
        self.config, self.source, self.text = config, source, text

    def batch(self, number: int, report: Report) -> TextPairBatch:
        texts, others, valid = [], [], []
        for index, rng in self.source.samples(number):
            report.read += 1
            try:
                raw = self.source.shards.read(index)
                text, other = self._example(raw, rng)
                report.places.append(raw.place)
                valid.append(True)
            except BrokenRecordError as error:
                report.broken.append(error.as_broken())
                text, other = self.text.filler(), ""
                valid.append(False)
            texts.append(text)
            others.append(other)
        return TextPairBatch(self.text.collate(texts), Text(*self.text.encode_plain(others)), torch.tensor(valid))

    def _example(self, raw: RawRecord, rng: np.random.Generator) -> tuple[TextExample, str]:
        sides = parse_pair_record(raw, self.config.source_key, self.config.target_key)
        first, second = sides if rng.random() < 0.5 else sides[::-1]
        text = self.text.encode(self.text.choose(first, rng, raw.place), rng)
        return text, self.text.choose(second, rng, raw.place)


def _records_per_batch(stream: StreamConfig) -> int:
    return stream.max_images if isinstance(stream, RegionStreamConfig) else stream.batch_size


def _may_be_clean(stream: StreamConfig) -> TypeGuard[ImageStreamConfig | VideoStreamConfig]:
    return isinstance(stream, ImageStreamConfig | VideoStreamConfig)
