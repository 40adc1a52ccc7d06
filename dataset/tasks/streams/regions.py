"""The stream of images with described boxes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from batches.images import stack_views
from batches.pretraining import RegionBatch
from dataset.broken import BrokenRecordError
from dataset.config import RegionStreamConfig
from dataset.examples import Account, RecordStream, readable_records
from dataset.media.augment import RandAugment, hflip, resize
from dataset.media.encoded import PixelState, for_boxes
from dataset.media.views import black
from dataset.records.boxes import WHOLE_BOX, elements_inside, flip_box, patch_mask, visible_elements
from dataset.records.schema import Box, Description, ImageKeys, ImageRecord, RawRecord, parse_region_record
from dataset.shards.samplers import sample_rng
from dataset.tasks.streams.wordings import Described, EncodedWording, HardNegativeCounts, TextMaker, Wording
from dataset.text.processors import TextProcessor
from utils.image_size import ImageSize, NativeSize, grid_of

FIRST_RECORDS, MAX_RECORDS = 20, 300
"""Number of records whose boxes are checked when a run starts, and maximum number of records that are read until one has a
box."""


@dataclass(frozen=True)
class RegionRow:
    """One text about an image, with its long text and its hard negatives; its box (cx, cy, w, h, relative to the image); the mask
    (P,) of the patches that the box covers; and whether the text describes the whole image or several boxes. For several boxes,
    ``box`` is the whole image, but no loss uses it."""

    texts: EncodedWording
    box: Box
    patch_mask: Tensor
    is_image: bool = False
    several_boxes: bool = False


class RegionStream:
    """A stream of images with described boxes. An image has several rows, one for each text."""

    def __init__(
        self,
        config: RegionStreamConfig,
        source: RecordStream[RawRecord],
        text: TextProcessor,
        sizes: tuple[ImageSize, int],
        max_pixels: int,
        pixels: PixelState = "shown",
    ):
        self.config, self.source, self.text = config, source, text
        self.image_size, self.patch_size = sizes
        self.max_pixels, self.pixels = max_pixels, for_boxes(pixels)
        self.keys, self.text_maker = ImageKeys.of(config), TextMaker(config, text)
        augment = config.augment
        self.rand_augment = RandAugment(augment.rand_augment_ops, augment.rand_augment_magnitude, colour_only=True)

    def first_boxes(self) -> tuple[list[tuple[Box, str]], list[ImageRecord]]:
        """Reads the first :data:`FIRST_RECORDS` records. If none of them has a box, reads records spread over all data until one
        has a box.

        Returns:
            The boxes as written in the records, each with its location; and the records that could be read.
        """
        shards, count = self.source.records, len(self.source.records)
        first = range(min(FIRST_RECORDS, count))
        later = np.linspace(FIRST_RECORDS, count - 1, MAX_RECORDS - FIRST_RECORDS).round().astype(int)

        def parse(raw: RawRecord) -> ImageRecord:
            return parse_region_record(raw, self.keys, self.config.caption_key)

        def boxes_of(record: ImageRecord) -> list[tuple[Box, str]]:
            return [(box, record.location) for element in record.elements for box in element.boxes]

        records = list(readable_records(shards, first, parse))
        boxes = [box for record in records for box in boxes_of(record)]
        if not boxes and count > FIRST_RECORDS:
            for record in readable_records(shards, np.unique(later).tolist(), parse):
                records.append(record)
                boxes = boxes_of(record)
                if boxes:
                    break
        return boxes, records

    def count_hard_negatives(self) -> HardNegativeCounts:
        """See :meth:`~dataset.tasks.streams.wordings.TextMaker.count_hard_negatives`."""

        def described(raw: RawRecord) -> Described:
            record = parse_region_record(raw, self.keys, self.config.caption_key)
            everything = [record, *record.elements]
            return everything if self.config.whole_image_rows else record.elements, everything

        return self.text_maker.count_hard_negatives(self.source.records, described)

    def batch(self, number: int, account: Account) -> RegionBatch:
        """Builds micro-batch ``number``. If the images have more rows than the batch, some are dropped at random."""
        examples = self.source.examples(number, account, partial(self.example, account=account))
        usable = [example for example in examples if example is not None]
        images = [image for image, _ in usable]
        rows = [(index, row) for index, (_, own_rows) in enumerate(usable) for row in own_rows]
        if len(rows) > self.config.batch_size:
            rng = sample_rng(self.source.seed, "regions/rows", 0, number)
            kept = rng.choice(len(rows), self.config.batch_size, replace=False)
            rows = [rows[row] for row in sorted(kept.tolist())]
        return self._collate(images, rows)

    def _collate(self, images: list[Tensor], rows: list[tuple[int, RegionRow]]) -> RegionBatch:
        """Builds a batch with the rows in the order of their images.

        Images without rows are dropped, or replaced by black images if shapes are static. Missing rows are replaced by fillers,
        which do not count in the losses. Fillers are assigned to the images with the fewest rows.
        """
        used = sorted({image for image, _ in rows})
        pixels = [images[image] for image in used] or [black(self.image_size)]
        renumbered = {image: index for index, image in enumerate(used)}
        laid = [(renumbered[image], True, row) for image, row in rows]
        if self.text.static:
            pixels += [black(self.image_size)] * (self.config.max_images - len(pixels))
        counts = np.bincount([image for image, _, _ in laid], minlength=len(pixels))
        for _ in range(self.config.batch_size - len(rows)):
            image = int(counts.argmin())
            counts[image] += 1
            laid.append((image, False, self._whole_image_row(pixels[image], EncodedWording(self.text.filler()))))
        laid.sort(key=lambda entry: entry[0])
        image_index, all_rows = [image for image, _, _ in laid], [row for _, _, row in laid]
        texts = [row.texts for row in all_rows]
        masks = [row.patch_mask for row in all_rows]
        if isinstance(self.image_size, NativeSize):
            masks = [F.pad(mask, (0, self.image_size.max_patches - len(mask))) for mask in masks]
        return RegionBatch(
            pixels=stack_views(pixels, self.image_size),
            image_index=torch.tensor(image_index),
            patch_mask=torch.stack(masks),
            boxes_cxcywh=torch.tensor([row.box for row in all_rows], dtype=torch.float32),
            is_image=torch.tensor([row.is_image for row in all_rows]),
            several_boxes=torch.tensor([row.several_boxes for row in all_rows]),
            text=self.text.collate([each.text for each in texts]),
            valid=torch.tensor([valid for _, valid, _ in laid]),
            long=self.text_maker.stacked_long_texts(texts),
            hard_negatives=self.text_maker.stacked_hard_negatives(texts),
        )

    def example(
        self, raw: RawRecord, rng: np.random.Generator, account: Account
    ) -> tuple[Tensor, list[RegionRow]] | None:
        """Builds the image (3, S, S) and the rows of a record. Unusable parts are added to ``account``.

        Returns:
            None if no part of the record is usable. A record whose phrases are all absent from the image is usable, but has no
            rows.

        Raises:
            BrokenRecordError: if the record or its image cannot be read, or if no row is left and no unusable part has been
                reported.
        """
        record = parse_region_record(raw, self.keys, self.config.caption_key)
        encoded = record.image.open(self.max_pixels, self.pixels)
        _, height, width = encoded.shape
        broken = list(record.broken)
        caption: list[Wording] = []
        if self.config.whole_image_rows and (
            record.captions or (record.long_captions and self.config.captions != "short")
        ):
            wording = self._wording(record, record.elements, rng, broken)
            caption = [] if wording is None else [wording]
        elements, outside = elements_inside(record, width, height)
        broken += outside
        crop, visible = visible_elements(
            elements,
            (width, height),
            rng,
            crop=self.config.crop,
            max_elements=self.config.max_regions - len(caption),
            min_inside=self.config.min_inside,
        )
        everything = [record, *record.elements]
        texts = [self._wording(element, everything, rng, broken, f"{element.name}: ") for element, _ in visible]
        for error in broken:
            account.add_broken(error)
        image = resize(crop.of(encoded), self.image_size)
        flip = rng.random() < self.config.augment.flip
        used = [wording for wording in (*caption, *texts) if wording is not None]
        if flip and all(wording.may_flip(self.config.careful_flip) for wording in used):
            image = hflip(image)
            visible = [(element, [flip_box(box) for box in boxes]) for element, boxes in visible]
        rows = [self._whole_image_row(image, self.text_maker.encode(wording, rng)) for wording in caption]
        for wording, (_, boxes) in zip(texts, visible, strict=True):
            if wording is not None:
                rows.append(self._row(image, self.text_maker.encode(wording, rng), boxes))
        only_absent = bool(record.elements) and not any(element.boxes for element in record.elements)
        if not rows and not broken and not only_absent:
            kind, why = (
                ("degenerate box", "every box is a sliver") if elements else ("missing key", "no element to use")
            )
            raise BrokenRecordError(kind, why)
        return (self.rand_augment(image, rng), rows) if rows or not broken else None

    def _wording(
        self,
        described: Description,
        others: Sequence[Description],
        rng: np.random.Generator,
        broken: list[BrokenRecordError],
        name: str = "",
    ) -> Wording | None:
        """Returns the texts of the image or of an element. If they cannot be used, returns None, and appends the error to
        ``broken``, with the ``name`` of the element."""
        try:
            return self.text_maker.choose(described, others, rng)
        except BrokenRecordError as error:
            broken.append(BrokenRecordError(error.reason, f"{name}{error.detail}"))
            return None

    def _row(self, image: Tensor, texts: EncodedWording, boxes: list[Box]) -> RegionRow:
        height, width = image.shape[1:]
        masks = [
            patch_mask(
                ((cx - w / 2) * width, (cy - h / 2) * height, w * width, h * height), (height, width), self.patch_size
            )
            for cx, cy, w, h in boxes
        ]
        mask = torch.stack(masks).any(dim=0)
        if len(boxes) > 1:
            return RegionRow(texts, WHOLE_BOX, mask, several_boxes=True)
        return RegionRow(texts, boxes[0], mask)

    def _whole_image_row(self, image: Tensor, texts: EncodedWording) -> RegionRow:
        rows, columns = grid_of((image.shape[1], image.shape[2]), self.patch_size)
        mask = torch.ones(rows * columns, dtype=torch.bool)
        return RegionRow(texts, WHOLE_BOX, mask, is_image=True)
