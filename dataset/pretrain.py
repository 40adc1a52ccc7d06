"""Pre-training data: records of up to three streams to examples to one :class:`~utils.batch.PretrainBatch`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from dataset.images import AugmentConfig, RandAugment, RegionAugmentConfig, decode, hflip, resize, training_view
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
from utils.batch import BrokenRecord, ImageTextBatch, PretrainBatch, RegionBatch, Text, TextBatch, TextPairBatch
from utils.config import Config
from utils.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


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


class ImageStreamConfig(PictureStreamConfig):
    """Image-text pairs."""

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


class DataConfig(LoadingConfig):
    """The data of pre-training: its streams, mixed in every micro-batch."""

    text: TextDataConfig = Field(default_factory=TextDataConfig, description="Cutting and masking of all texts.")
    images: ImageStreamConfig | None = Field(None, description="Image-text pairs.")
    regions: RegionStreamConfig | None = Field(None, description="Pictures with described boxes.")
    texts: TextStreamConfig | None = Field(None, description="Texts alone.")
    pairs: TextPairStreamConfig | None = Field(None, description="Texts with their translations.")
    cache_index: str | None = Field(None, description="Folder of shard indexes; null = the user's cache folder.")

    @model_validator(mode="after")
    def _has_a_stream(self) -> DataConfig:
        if not self.streams():
            raise ValueError("no stream is configured; give at least one of images, regions, texts, pairs")
        return self

    def streams(self) -> dict[str, ImageStreamConfig | RegionStreamConfig | TextStreamConfig | TextPairStreamConfig]:
        """The configured streams by name."""
        named = {"images": self.images, "regions": self.regions, "texts": self.texts, "pairs": self.pairs}
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
    """Micro-batch number u of a run, as a function of u alone (and of data, seed and, in sequential order, ranks).

    Args:
        data: the streams.
        tokenizer: see :class:`~dataset.text.TextProcessor`.
        image_size: side of the input in pixels.
        patch_size: side of a patch; must divide ``image_size``.
        seed: of order, augmentation and masking.
        world_size: processes that share the data.

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
    ):
        if image_size % patch_size:
            raise UserError(f"image size {image_size} is not a multiple of patch size {patch_size}; change one of them")
        self.text = TextProcessor(tokenizer, data.text)
        sources = {
            name: RecordSource(
                Shards(stream.files, key=f"data.{name}.files", index_folder=data.cache_index),
                _records_per_batch(stream),
                order=stream.order,
                name=name,
                seed=seed,
                world_size=world_size,
            )
            for name, stream in data.streams().items()
        }
        streams = data.streams()
        self.stream_sizes = {name: len(source.shards) for name, source in sources.items()}
        self.rows_per_batch = sum(stream.batch_size for stream in streams.values())
        self.records_per_batch = _records_per_batch(next(iter(streams.values())))
        self.images = self.regions = self.texts = self.pairs = None
        if data.images:
            self.images = _ImageStream(data.images, sources["images"], self.text, image_size, data.max_pixels)
        if data.regions:
            view = (image_size, patch_size)
            self.regions = _RegionStream(data.regions, sources["regions"], self.text, view, data.max_pixels)
        if data.texts:
            self.texts = _TextStream(data.texts, sources["texts"], self.text)
        if data.pairs:
            text = TextProcessor(tokenizer, data.pairs.text) if data.pairs.text else self.text
            self.pairs = _TextPairStream(data.pairs, sources["pairs"], text)

    def make(self, number: int) -> PretrainBatch:
        """Micro-batch ``number``, counted over all ranks."""
        report = Report()
        return PretrainBatch(
            images=self.images.batch(number, report) if self.images else None,
            regions=self.regions.batch(number, report) if self.regions else None,
            texts=self.texts.batch(number, report) if self.texts else None,
            pairs=self.pairs.batch(number, report) if self.pairs else None,
            records=tuple(report.places),
            broken=tuple(report.broken),
            read=report.read,
        )


class _ImageStream:
    def __init__(
        self, config: ImageStreamConfig, source: RecordSource, text: TextProcessor, image_size: int, max_pixels: int
    ):
        self.config, self.source, self.text = config, source, text
        self.image_size, self.max_pixels = image_size, max_pixels
        self.keys = config.keys()
        self.rand_augment = RandAugment(config.augment.rand_augment_ops, config.augment.rand_augment_magnitude)

    def batch(self, number: int, report: Report) -> ImageTextBatch:
        pixels, texts, valid = [], [], []
        for index, rng in self.source.samples(number):
            report.read += 1
            try:
                raw = self.source.shards.read(index)
                image, text = self._example(raw, rng)
                report.places.append(raw.place)
                valid.append(True)
            except BrokenRecordError as error:
                report.broken.append(error.as_broken())
                image, text = _black(self.image_size), self.text.filler()
                valid.append(False)
            pixels.append(image)
            texts.append(text)
        return ImageTextBatch(torch.stack(pixels), self.text.collate(texts), torch.tensor(valid))

    def _example(self, raw: RawRecord, rng: np.random.Generator) -> tuple[Tensor, TextExample]:
        record = parse_image_record(raw, self.keys, self.config.caption_key)
        text = self.text.choose(record.captions, rng, record.place)
        image = decode(record.image.load(), self.max_pixels, record.place)
        may_flip = not (self.config.careful_flip and mentions_side(text))
        view = training_view(image, self.image_size, self.config.augment, self.rand_augment, rng, may_flip=may_flip)
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
        pixels = [images[image] for image in used] or [_black(self.image_size)]
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


def _black(size: int) -> Tensor:
    return torch.zeros(3, size, size, dtype=torch.uint8)
