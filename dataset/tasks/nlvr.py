"""Visual reasoning data: the JSON lines of NLVR2, MaRVL and XVNLI, or lists with the names of the pictures."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from dataset.formats.annotations import Pictures, Row, images_folder, parse_rows, read_rows, texts_of
from dataset.formats.iglue import ENTAILMENT, statement_row, without_gold
from dataset.media.augment import AugmentConfig, RandAugment, training_view
from dataset.media.encoded import Picture
from dataset.media.views import black
from dataset.records.schema import BrokenRecordError, ImageSource
from dataset.tasks.finetune import FILLER_TEXT, FineTuneBatches, FineTuneDataConfig, cleaned
from dataset.text.processors import mentions_side
from utils.batch import PairBatch
from utils.config import Config
from utils.errors import UserError

_IDENTIFIER = re.compile(r"([a-z]+\d*)-(\d+)-(\d+)-(\d+)")


class NLVRSplitConfig(Config):
    """A split: NLVR2's JSON lines (``sentence``, ``label``, ``identifier``, and in train ``directory``), whose pictures are
    found below ``images`` as in the official layout (``train/<directory>/…-img0.png``, ``dev/…``, ``test1/…``); those of MaRVL
    (``<concept>/<picture>``) or XVNLI (``<Flickr id>.jpg``); or rows that name their pictures, left first, in ``images``."""

    annotations: str = Field(description="JSON lines of NLVR2, MaRVL or XVNLI, or with the paths of images")
    images: str | None = Field(None, description="folder of relative paths; null: that of the annotations")


class NLVRDataConfig(FineTuneDataConfig):
    """Training statements."""

    train: NLVRSplitConfig
    augment: AugmentConfig = Field(
        default_factory=lambda: AugmentConfig(scale=(0.5, 1.0)),
        description="augmentation, drawn for each picture apart",
    )
    careful_flip: bool = Field(
        False, description="do not flip where the text says left or right; English only (released: flips)"
    )


@dataclass(frozen=True)
class Statement:
    """``label``: the sentence is false (0) or true (1) of the ``pictures``, or it contradicts them (0), follows from them (1)
    or neither (2). ``sentence_id``: equal for rows that share their sentence."""

    sentence: str
    pictures: tuple[ImageSource, ...]
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
    rows = [row for row in read_rows(config.annotations, key) if not without_gold(row)]
    return parse_rows(rows, lambda row: _parse(statement_row(row), pictures), key, max_broken)


def check_statements(items: Sequence[Statement], pictures: int, classes: int, key: str) -> None:
    """Raises :class:`UserError` with the config ``key`` where a statement is about another number of pictures, or its label is
    none of the classes."""
    for item in items:
        if len(item.pictures) != pictures:
            raise UserError(
                f"{key}: {item.place} has {len(item.pictures)} images, but model.images is {pictures}; change it"
            )
        if item.label >= classes:
            raise UserError(
                f"{key}: {item.place} is of class {item.label}, but model.classes is {classes}; set it to 3"
            )


def _parse(row: Row, pictures: Pictures) -> Statement:
    sentence = texts_of(row, "sentence")[0]
    label = str(row.get("label", object)).lower()
    names = next((names for names in (("false", "true"), ENTAILMENT) if label in names), None)
    if names is None:
        known = f"neither True nor False, nor one of {', '.join(ENTAILMENT)}"
        raise BrokenRecordError("wrong type", row.place, f"label is {row.values['label']!r}, {known}")
    found = tuple(pictures.find(name, row.place) for name in _picture_names(row))
    match = _IDENTIFIER.fullmatch(str(row.values.get("identifier")))
    # An identifier is split-set-pair-sentence: the pair is what rows of one sentence differ in.
    sentence_id = f"{match[1]}-{match[2]}-{match[4]}" if match else sentence
    return Statement(sentence, found, names.index(label), sentence_id, row.place)


def _picture_names(row: Row) -> tuple[str, ...]:
    if "images" in row.values:
        names = row.get("images", list)
        if len(names) not in (1, 2) or not all(isinstance(name, str) for name in names):
            raise BrokenRecordError("wrong type", row.place, f"images is {names!r:.80}, not two paths, or one")
        return tuple(names)
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
    """One training row: views (K, 3, S, S) of the pictures, the cleaned statement, and its label."""

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
                Picture(source.load(), self.data.max_pixels, source.place, self.data.pixels),
                self.image_size,
                self.data.augment,
                self.augment,
                rng,
                may_flip=may_flip,
            )
            for source in item.pictures
        ]
        return PairExample(torch.stack(views), sentence, item.label)

    def place(self, index: int) -> str:
        return self.items[index].place

    def filler(self) -> PairExample:
        return PairExample(torch.stack([black(self.image_size)] * len(self.items[0].pictures)), FILLER_TEXT, 0)

    def collate(self, examples: Sequence[PairExample], valid: Tensor, **made: Any) -> PairBatch:
        return PairBatch(
            pixels=torch.stack([example.pixels for example in examples], dim=1).flatten(0, 1),
            text=self.text.encode_plain([example.sentence for example in examples]),
            label=torch.tensor([example.label for example in examples]),
            valid=valid,
            **made,
        )
