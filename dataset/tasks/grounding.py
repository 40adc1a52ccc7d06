"""Grounding data: RefCOCO's official files, or region records of our own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from dataset.formats.annotations import (
    Pictures,
    Row,
    images_folder,
    parse_rows,
    read_json,
    read_rows,
    texts_of,
    wanted_splits,
)
from dataset.media.augment import RandAugment, RegionAugmentConfig, hflip, resize, stack_views
from dataset.media.encoded import Picture, for_boxes
from dataset.media.views import black, check_size
from dataset.records.boxes import WHOLE_BOX, flip_box, visible_elements
from dataset.records.schema import (
    Box,
    BrokenRecordError,
    Element,
    ImageKeys,
    ImageSource,
    RawRecord,
    box_in,
    parse_region_record,
    place_box,
)
from dataset.tasks.finetune import FILLER_TEXT, FineTuneBatches, FineTuneDataConfig, cleaned
from dataset.text.processors import mentions_side
from utils.batch import GroundingBatch
from utils.config import Config
from utils.errors import UserError
from utils.pickles import read_plain_pickle

COCO_NAME = "COCO_train2014_{:012d}.jpg"
"""All pictures of RefCOCO, RefCOCO+ and RefCOCOg are of COCO train2014; the references' own ``file_name`` has a suffix."""


class GroundingSplitConfig(Config):
    """A split: RefCOCO's ``refs`` (``refs(unc).p``) with ``instances`` (``instances.json``), of which ``splits`` names parts;
    or ``annotations``, region records (``image``, ``elems`` of ``bb`` and ``caption``)."""

    refs: str | None = Field(None, description="the official pickle of references; no code in it is run")
    instances: str | None = Field(None, description="the official COCO instances with the boxes")
    splits: list[str] | None = Field(
        None, min_length=1, description="train, val, testA, testB (RefCOCOg: train, val, test)"
    )
    annotations: str | None = Field(None, description="region records, instead of refs and instances")
    images: str | None = Field(None, description="folder of the pictures; null: that of the annotations")
    language: str | None = Field(None, description="of phrases in several languages; null: all of them")

    @model_validator(mode="after")
    def _is_one_of_both(self) -> GroundingSplitConfig:
        official = (self.refs, self.instances, self.splits, self.images)
        if self.annotations is None and None in official:
            raise ValueError("give refs, instances, splits and images, or annotations")
        if self.annotations is not None and (self.refs or self.instances or self.splits):
            raise ValueError("give either annotations, or refs, instances and splits")
        return self


class GroundingDataConfig(FineTuneDataConfig):
    """Training phrases."""

    train: GroundingSplitConfig
    crop: bool = Field(True, description="crop at random around the box; false: the whole picture")
    careful_flip: bool = Field(
        True, description="do not flip where the phrase says left or right; English only (as released)"
    )
    augment: RegionAugmentConfig = Field(default_factory=RegionAugmentConfig, description="flip and colours")


@dataclass(frozen=True)
class Phrase:
    """A phrase and its ``box``, x, y, w, h in pixels of the picture of ``size`` (width, height); ``grain``: its kind."""

    text: str
    image: ImageSource
    box: Box
    size: tuple[int, int]
    grain: str

    @property
    def place(self) -> str:
        return self.image.place


def read_phrases(config: GroundingSplitConfig, key: str, max_broken: float) -> list[Phrase]:
    """Read and check a split; every picture is looked for, and every box must lie in it.

    Raises:
        UserError: with the config ``key``: a file cannot be used, a split names no record, or more than the share
            ``max_broken`` of its rows are broken.
    """
    if config.annotations is None:
        return _read_refcoco(config, key, max_broken)
    folder = images_folder(config.images, config.annotations)
    pictures = Pictures(folder)
    rows = read_rows(config.annotations, key)
    parsed = parse_rows(rows, lambda row: _parse_record(row, folder, pictures, config.language), key, max_broken)
    return [phrase for phrases in parsed for phrase in phrases]


def _parse_record(row: Row, folder: Path, pictures: Pictures, language: str | None) -> list[Phrase]:
    record = parse_region_record(RawRecord(row.values, row.place, folder), ImageKeys(image_is="path"), "")
    if record.broken:
        raise BrokenRecordError(record.broken[0].kind, row.place, record.broken[0].message)
    source = pictures.find(row.get("image", str), row.place)
    width, height = size = pictures.size(source)
    phrases = []
    for element in record.elements:
        box = place_box(element.box, width, height, row.place, element.name)
        texts = texts_of(Row({element.name: list(element.captions)}, row.place), element.name, language)
        phrases += [Phrase(text, source, box, size, element.grain) for text in texts]
    if not phrases:
        raise BrokenRecordError("empty text", row.place, "elems is empty")
    return phrases


def _read_refcoco(config: GroundingSplitConfig, key: str, max_broken: float) -> list[Phrase]:
    assert config.refs and config.instances and config.splits and config.images
    refs = read_plain_pickle(config.refs, f"{key}.refs")
    if not isinstance(refs, list) or not all(isinstance(ref, dict) for ref in refs):
        raise UserError(f"{key}.refs: {config.refs} is no list of references")
    wanted_splits([str(ref.get("split")) for ref in refs], config.splits, key, config.refs)
    instances = read_json(config.instances, f"{key}.instances")
    try:
        boxes = {each["id"]: each["bbox"] for each in instances["annotations"]}
        sizes = {each["id"]: (each["width"], each["height"]) for each in instances["images"]}
    except (KeyError, TypeError) as error:
        raise UserError(f"{key}.instances: {config.instances} is no COCO instances file (no {error})") from None
    pictures = Pictures(Path(config.images).expanduser())
    rows: list[Row | BrokenRecordError] = [
        Row(ref, f"{config.refs}[{index}]") for index, ref in enumerate(refs) if ref.get("split") in config.splits
    ]

    def parse(row: Row) -> list[Phrase]:
        image, annotation = row.get("image_id", int), row.get("ann_id", int)
        if annotation not in boxes or image not in sizes:
            raise BrokenRecordError(
                "missing key", row.place, f"ann_id {annotation}, image_id {image}: not in instances"
            )
        source = pictures.find(COCO_NAME.format(image), row.place)
        width, height = size = sizes[image]
        given = box_in(boxes[annotation], f"bbox of ann_id {annotation}", row.place)
        box = place_box(given, width, height, row.place, "annotation")
        sentences = [each.get("sent") for each in row.get("sentences", list) if isinstance(each, dict)]
        texts = [text for text in sentences if isinstance(text, str) and text.strip()]
        if not texts:
            raise BrokenRecordError("empty text", row.place, "no sentence with words")
        return [Phrase(text, source, box, size, row.get("split", str)) for text in texts]

    parsed = parse_rows(rows, parse, key, max_broken)
    return [phrase for phrases in parsed for phrase in phrases]


@dataclass(frozen=True)
class GroundingExample:
    """One training row: a view (3, S, S) of the picture, the cleaned phrase, and its box (cx, cy, w, h) in the view."""

    pixels: Tensor
    text: str
    box: Box


class GroundingBatches(FineTuneBatches[GroundingDataConfig, GroundingExample]):
    """Every phrase once an epoch."""

    name = "phrases"

    def read(self, data: GroundingDataConfig) -> int:
        self.items = read_phrases(data.train, "data.train", data.max_broken)
        augment = data.augment
        self.augment = RandAugment(augment.rand_augment_ops, augment.rand_augment_magnitude, colour_only=True)
        return len(self.items)

    def example(self, index: int, rng: np.random.Generator) -> GroundingExample:
        item = self.items[index]
        text = cleaned(item.text, self.text.max_words, item.place)
        picture = Picture(item.image.load(), self.data.max_pixels, item.place, for_boxes(self.data.pixels))
        check_size(picture, item.size, item.place)
        element = Element("phrase", item.box, (text,))
        crop, found = visible_elements([element], item.size, rng, crop=self.data.crop, most=1, min_inside=0.5)
        if not found:
            raise BrokenRecordError("degenerate box", item.place, f"{item.box} is a sliver of the picture")
        box = found[0][1]
        image = resize(crop.of(picture), self.image_size)
        if rng.random() < self.data.augment.flip and not (self.data.careful_flip and mentions_side(text)):
            image, box = hflip(image), flip_box(box)
        return GroundingExample(self.augment(image, rng), text, box)

    def place(self, index: int) -> str:
        return self.items[index].place

    def filler(self) -> GroundingExample:
        return GroundingExample(black(self.image_size), FILLER_TEXT, WHOLE_BOX)

    def collate(self, examples: Sequence[GroundingExample], valid: Tensor, **made: Any) -> GroundingBatch:
        return GroundingBatch(
            pixels=stack_views([example.pixels for example in examples]),
            text=self.text.encode_plain([example.text for example in examples]),
            boxes_cxcywh=torch.tensor([example.box for example in examples], dtype=torch.float32),
            valid=valid,
            **made,
        )
