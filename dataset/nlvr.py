"""Visual reasoning data: NLVR2's own JSON lines, or lists with the names of both pictures."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from dataset.annotations import Pictures, Row, images_folder, parse_rows, read_rows, texts_of
from dataset.finetune import FILLER_TEXT, FineTuneBatches, FineTuneDataConfig, black, cleaned, encode_texts
from dataset.images import AugmentConfig, RandAugment, decode, training_view
from dataset.records import BrokenRecordError, ImageSource
from dataset.text import mentions_side
from utils.batch import PairBatch
from utils.config import Config

_IDENTIFIER = re.compile(r"([a-z]+\d*)-(\d+)-(\d+)-(\d+)")


class NLVRSplitConfig(Config):
    """A split: NLVR2's JSON lines (``sentence``, ``label``, ``identifier``, and in train ``directory``), whose pictures are
    found below ``images`` as in the official layout (``train/<directory>/…-img0.png``, ``dev/…``, ``test1/…``); or rows that
    name their two pictures, left first, in ``images``."""

    annotations: str
    images: str | None = Field(None, description="folder of relative paths; null: that of the annotations")


class NLVRDataConfig(FineTuneDataConfig):
    """Training statements."""

    train: NLVRSplitConfig
    augment: AugmentConfig = Field(
        default_factory=lambda: AugmentConfig(scale=(0.5, 1.0)),
        description="augmentation, drawn for each picture apart",
    )
    careful_flip: bool = Field(False, description="do not flip where the text says left or right (released: flips)")


@dataclass(frozen=True)
class Statement:
    """``label`` 1 = the sentence is true of the two pictures. ``sentence_id``: equal for rows that share their sentence."""

    sentence: str
    left: ImageSource
    right: ImageSource
    label: int
    sentence_id: str
    place: str


def read_statements(config: NLVRSplitConfig, key: str, max_broken: float) -> list[Statement]:
    """Read and check a split; every picture is looked for.

    Raises:
        UserError: with the config ``key``: the file cannot be used, or more than the share ``max_broken`` of its rows are
            broken.
    """
    pictures = Pictures(images_folder(config.images, config.annotations))
    return parse_rows(read_rows(config.annotations, key), lambda row: _parse(row, pictures), key, max_broken)


def _parse(row: Row, pictures: Pictures) -> Statement:
    sentence = texts_of(row, "sentence")[0]
    label = str(row.get("label", object)).lower()
    if label not in ("true", "false"):
        raise BrokenRecordError("wrong type", row.place, f"label is {row.values['label']!r}, neither True nor False")
    left, right = (pictures.find(name, row.place) for name in _picture_names(row))
    match = _IDENTIFIER.fullmatch(str(row.values.get("identifier")))
    # An identifier is split-set-pair-sentence: the pair is what rows of one sentence differ in.
    sentence_id = f"{match[1]}-{match[2]}-{match[4]}" if match else sentence
    return Statement(sentence, left, right, int(label == "true"), sentence_id, row.place)


def _picture_names(row: Row) -> tuple[str, str]:
    if "images" in row.values:
        names = row.get("images", list)
        if len(names) != 2 or not all(isinstance(name, str) for name in names):
            raise BrokenRecordError("wrong type", row.place, f"images is {names!r:.80}, not two paths")
        return names[0], names[1]
    identifier = row.get("identifier", str)
    match = _IDENTIFIER.fullmatch(identifier)
    if not match:
        raise BrokenRecordError("wrong type", row.place, f"identifier {identifier!r} is not split-set-pair-sentence")
    folder = match[1]
    if folder == "train":
        folder = f"train/{row.get('directory', int)}"
    stem = identifier.rpartition("-")[0]
    return f"{folder}/{stem}-img0.png", f"{folder}/{stem}-img1.png"


@dataclass(frozen=True)
class PairExample:
    """One training row: views (2, 3, S, S) of the pictures, the cleaned statement, and whether it is true."""

    pixels: Tensor
    sentence: str
    label: int


class NLVRBatches(FineTuneBatches[NLVRDataConfig, PairExample]):
    """Every statement once an epoch."""

    name = "statements"

    def read(self, data: NLVRDataConfig) -> int:
        self.items = read_statements(data.train, "data.train", data.max_broken)
        self.augment = RandAugment(data.augment.rand_augment_ops, data.augment.rand_augment_magnitude)
        return len(self.items)

    def example(self, index: int, rng: np.random.Generator) -> PairExample:
        item = self.items[index]
        sentence = cleaned(item.sentence, self.text.max_words, item.place)
        may_flip = not (self.data.careful_flip and mentions_side(sentence))
        views = [
            training_view(
                decode(source.load(), self.data.max_pixels, source.place),
                self.image_size,
                self.data.augment,
                self.augment,
                rng,
                may_flip=may_flip,
            )
            for source in (item.left, item.right)
        ]
        return PairExample(torch.stack(views), sentence, item.label)

    def place(self, index: int) -> str:
        return self.items[index].place

    def filler(self) -> PairExample:
        return PairExample(torch.stack([black(self.image_size)] * 2), FILLER_TEXT, 0)

    def collate(self, examples: Sequence[PairExample], valid: Tensor, **made: Any) -> PairBatch:
        return PairBatch(
            pixels=torch.cat([torch.stack([example.pixels[side] for example in examples]) for side in (0, 1)]),
            text=encode_texts(self.text, [example.sentence for example in examples]),
            label=torch.tensor([example.label for example in examples]),
            valid=valid,
            **made,
        )
