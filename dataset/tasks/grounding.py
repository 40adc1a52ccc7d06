"""Grounding data: phrases with their boxes, from RefCOCO's official files or from region records."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from batches.base import BrokenRecord
from batches.grounding import GroundingBatch
from batches.images import stack_views
from dataset.broken import BrokenRecordError
from dataset.config import GroundingDataConfig, GroundingSplitConfig
from dataset.formats import refcoco
from dataset.formats.annotations import ImageFiles, Row, images_folder, parse_rows, read_records, texts_of
from dataset.media.augment import RandAugment, hflip, resize
from dataset.media.encoded import for_boxes
from dataset.media.sources import ImageSource
from dataset.media.views import black, check_size
from dataset.records.boxes import WHOLE_BOX, flip_box, place_box, visible_elements
from dataset.records.schema import Box, Element, ImageKeys, RawRecord, box_in, parse_region_record
from dataset.tasks.finetune import FILLER_TEXT, FineTuneBatches, cleaned
from dataset.text.processors import mentions_side
from utils.errors import UserError
from utils.files import expanded

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Phrase:
    """A phrase with its boxes.

    Attributes:
        text: the phrase.
        image: the image.
        boxes: x, y, w, h in pixels.
        size: width and height of the image.
        grain: type of the description ("object", "region", …).
    """

    text: str
    image: ImageSource
    boxes: tuple[Box, ...]
    size: tuple[int, int]
    grain: str

    @property
    def location(self) -> str:
        return self.image.location


ONE_BOX, ANY_NUMBER = range(1, 2), range(2**31)


def read_phrases(config: GroundingSplitConfig, key: str, max_broken: float, counts: range = ONE_BOX) -> list[Phrase]:
    """Reads and checks a split. Every image must exist, and every box must be inside its image.

    Args:
        config: the split.
        key: config key of the split, to name in error messages.
        max_broken: maximum fraction of broken rows.
        counts: numbers of boxes that the head can predict. Phrases with a different number of boxes are skipped and counted in
            the log.

    Raises:
        UserError: if a file cannot be used, a split has no record, or more than the fraction ``max_broken`` of the rows are
            broken. The message names the config ``key``.
    """
    rows: Iterable[Row | BrokenRecord]
    if config.format == "refcoco":
        assert config.refs and config.instances and config.splits and config.images
        images = ImageFiles(expanded(config.images))
        rows = refcoco.phrase_rows(config.refs, config.instances, config.splits, key)
        parse = partial(_parse_reference, images=images)
    else:
        assert config.annotations is not None
        images = ImageFiles(images_folder(config.images, config.annotations))
        rows = read_records(config.annotations, key, ("refcoco",))
        parse = partial(_parse_record, images=images, language=config.language)
    parsed = parse_rows(rows, parse, key, max_broken, f"{images.folder} ({key}.images)")
    phrases = [phrase for row_phrases in parsed for phrase in row_phrases]
    fitting = [phrase for phrase in phrases if len(phrase.boxes) in counts]
    needed, remedy = "exactly one box", "model.box_set adds a head for several boxes and none"
    if counts != ONE_BOX:
        needed, remedy = f"at most {counts.stop - 1} boxes", "raise model.box_set.queries"
    if len(fitting) < len(phrases):
        none = sum(not phrase.boxes and 0 not in counts for phrase in phrases)
        text = "%s: skipped %d phrases with several boxes and %d without a box; the head needs %s: %s"
        logger.info(text, key, len(phrases) - len(fitting) - none, none, needed, remedy)
    if not fitting:
        raise UserError(
            f"no phrase of {config.annotations or config.refs} has {needed}, which the head needs",
            where=key,
            remedy=remedy,
        )
    return fitting


def _parse_reference(row: Row, images: ImageFiles) -> list[Phrase]:
    source = images.find(row.get("image", str), row.location)
    width, height = size = row.values["size"]
    found = [box_in(box, "bbox") for box in row.values["boxes"]]
    boxes = tuple(place_box(box, width, height, "annotation") for box in found)
    return [Phrase(text, source, boxes, size, row.values["split"]) for text in row.values["phrases"]]


def _parse_record(row: Row, images: ImageFiles, language: str | None) -> list[Phrase]:
    raw = RawRecord(row.values, row.location, images.folder)
    record = parse_region_record(raw, ImageKeys(image_is="path"), "")
    if record.broken:
        raise record.broken[0]
    source = images.find(row.get("image", str), row.location)
    width, height = size = images.size(source)
    phrases = []
    for element in record.elements:
        boxes = tuple(place_box(box, width, height, element.name) for box in element.boxes)
        texts = texts_of(Row({element.name: list(element.captions)}, row.location), element.name, language)
        phrases += [Phrase(text, source, boxes, size, element.grain) for text in texts]
    if not record.elements:
        raise BrokenRecordError("empty text", "elems is empty")
    return phrases


@dataclass(frozen=True)
class GroundingExample:
    """A training example: a view (3, S, S) of the image, the phrase's token ids, and its boxes (cx, cy, w, h) in the view."""

    pixels: Tensor
    ids: list[int]
    boxes: tuple[Box, ...]


class GroundingBatches(FineTuneBatches[GroundingDataConfig, Phrase, GroundingExample]):
    """Batches of phrases with their images. An epoch contains every phrase once.

    Args:
        counts: see :func:`read_phrases`.
    """

    name = "phrases"

    others: Sequence[Phrase]
    """The phrases that replace those of the examples with ``data.absent``."""

    def __init__(self, data: GroundingDataConfig, counts: range = ONE_BOX, **options: Any):
        self.counts = counts
        super().__init__(data, **options)
        self.others = self.items
        if isinstance(self.replay, GroundingBatches):
            self.others, self.replay.others = self.replay.items, self.items

    def read(self, data: GroundingDataConfig) -> list[Phrase]:
        self.items = read_phrases(data.train, self.key, data.max_broken, self.counts)
        self.with_boxes = [index for index, item in enumerate(self.items) if item.boxes]
        self.texts_of: dict[str, set[str]] = {}
        for item in self.items:
            self.texts_of.setdefault(item.location, set()).add(item.text)
        augment = data.augment
        self.augment = RandAugment(augment.rand_augment_ops, augment.rand_augment_magnitude, colour_only=True)
        return self.items

    def example(self, record: Phrase, rng: np.random.Generator) -> GroundingExample:
        if self.data.absent and rng.random() < self.data.absent:
            record = self._with_absent_phrase(record, rng)
        text = cleaned(record.text, self.text.max_words)
        encoded = record.image.open(self.data.max_pixels, for_boxes(self.data.pixels))
        check_size(encoded, record.size)
        around = record.boxes or self._boxes_of_another_phrase(record.size, rng)
        element = Element((text,), name="phrase", boxes=around)
        crop, visible = visible_elements(
            [element], record.size, rng, crop=self.data.crop, max_elements=1, min_inside=0.5
        )
        if record.boxes and not visible:
            raise BrokenRecordError("degenerate box", f"one of {record.boxes} is a sliver of the image")
        boxes = visible[0][1] if record.boxes else []
        image = resize(crop.of(encoded), self.image_size)
        if rng.random() < self.data.augment.flip and not (self.data.careful_flip and mentions_side(text)):
            image, boxes = hflip(image), list(map(flip_box, boxes))
        return GroundingExample(self.augment(image, rng), self.text.token_ids(text), tuple(boxes))

    def _with_absent_phrase(self, record: Phrase, rng: np.random.Generator) -> Phrase:
        """Replaces the phrase by one that the annotations of its image do not contain, and that has no box. After ten phrases
        that they contain, the record is unchanged."""
        for _ in range(10):
            text = self.others[int(rng.integers(len(self.others)))].text
            if text not in self.texts_of[record.location]:
                return replace(record, text=text, boxes=())
        return record

    def _boxes_of_another_phrase(self, size: tuple[int, int], rng: np.random.Generator) -> tuple[Box, ...]:
        """Returns another phrase's boxes, at the same relative position. The image of a phrase without a box is cropped around
        these boxes, because the crop would otherwise reveal that the phrase has no box."""
        if not self.with_boxes:
            return ((0.0, 0.0, float(size[0]), float(size[1])),)
        other = self.items[self.with_boxes[int(rng.integers(len(self.with_boxes)))]]
        x_scale, y_scale = size[0] / other.size[0], size[1] / other.size[1]
        return tuple((x * x_scale, y * y_scale, w * x_scale, h * y_scale) for x, y, w, h in other.boxes)

    def filler(self) -> GroundingExample:
        return GroundingExample(black(self.image_size), self.text.token_ids(FILLER_TEXT), (WHOLE_BOX,))

    def collate(self, examples: Sequence[GroundingExample], valid: Tensor, **fields: Any) -> GroundingBatch:
        most = max(1, *(len(example.boxes) for example in examples))
        boxes = [[*example.boxes, *[WHOLE_BOX] * (most - len(example.boxes))] for example in examples]
        return GroundingBatch(
            pixels=stack_views([example.pixels for example in examples], self.image_size),
            text=self.text.stack_plain([example.ids for example in examples]),
            boxes_cxcywh=torch.tensor(boxes, dtype=torch.float32),
            present=torch.tensor([[number < len(example.boxes) for number in range(most)] for example in examples]),
            valid=valid,
            **fields,
        )
