"""Visual reasoning data: statements about one or two images, in all supported formats."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from batches.base import BrokenRecord
from batches.images import stack_views
from batches.nlvr import StatementBatch
from dataset.broken import BrokenRecordError
from dataset.config import NLVRDataConfig, NLVRSplitConfig
from dataset.formats import iglue, nlvr2
from dataset.formats.annotations import (
    ImageFiles,
    Row,
    converted,
    images_folder,
    parse_rows,
    read_records,
    read_rows,
    texts_of,
)
from dataset.media.sources import ImageSource
from dataset.media.views import TrainingView
from dataset.tasks.finetune import FILLER_TEXT, FineTuneBatches, cleaned
from dataset.text.processors import mentions_side
from utils.errors import UserError

LABELS = {2: ("false", "true"), 3: iglue.ENTAILMENT}
"""Names of the labels in the order of their classes, by number of classes."""


@dataclass(frozen=True)
class Statement:
    """A statement about one or two images.

    Attributes:
        sentence: the statement.
        images: the images.
        label: with two classes, the sentence is false (0) or true (1); with three, it contradicts the images (0), follows from
            them (1), or does neither (2).
        sentence_id: equal for rows with the same sentence.
        location: location of the row.
    """

    sentence: str
    images: tuple[ImageSource, ...]
    label: int
    sentence_id: str
    location: str


def read_statements(config: NLVRSplitConfig, key: str, max_broken: float) -> list[Statement]:
    """Reads and checks a split. Every image must exist.

    Raises:
        UserError: if the file cannot be used, or more than the fraction ``max_broken`` of its rows are broken. The message names
            the config ``key``.
    """
    images = ImageFiles(images_folder(config.images, config.annotations))
    return parse_rows(
        _rows(config, key), lambda row: _parse(row, images), key, max_broken, f"{images.folder} ({key}.images)"
    )


def _rows(config: NLVRSplitConfig, key: str) -> Iterable[Row | BrokenRecord]:
    if config.format == "nlvr2":
        return converted(read_rows(config.annotations, key), nlvr2.statement_row)
    if config.format == "marvl":
        return iglue.marvl_rows(config.annotations, key)
    if config.format == "xvnli":
        return iglue.xvnli_rows(config.annotations, key)
    return read_records(config.annotations, key, ("nlvr2", "marvl", "xvnli"))


def check_statements(items: Sequence[Statement], images: int, classes: int, key: str) -> None:
    """Raises :class:`UserError`, naming the config ``key``, if a statement has a different number of images than the model, or
    its label is not one of the model's classes."""
    for item in items:
        if len(item.images) != images:
            raise UserError(
                f"{item.location} has {len(item.images)} images, but model.images is {images}",
                where=key,
                remedy="change it",
            )
        if item.label >= classes:
            raise UserError(
                f"{item.location} has label {item.label}, but model.classes is {classes}",
                where=key,
                remedy="set it to 3",
            )


def _parse(row: Row, images: ImageFiles) -> Statement:
    sentence = texts_of(row, "sentence")[0]
    label = str(row.get("label", object)).lower()
    classes = next((classes for classes in LABELS.values() if label in classes), None)
    if classes is None:
        known = f"neither True nor False, nor one of {', '.join(iglue.ENTAILMENT)}"
        raise BrokenRecordError("wrong type", f"label is {row.values['label']!r}, {known}")
    names = row.get("images", list)
    if len(names) not in (1, 2) or not all(isinstance(name, str) for name in names):
        raise BrokenRecordError("wrong type", f"images is {names!r:.80}, not one or two paths")
    sources = tuple(images.find(name, row.location) for name in names)
    return Statement(sentence, sources, classes.index(label), nlvr2.sentence_id(row) or sentence, row.location)


@dataclass(frozen=True)
class StatementExample:
    """A training example: the view (3, H, W) of each image, the token ids of the statement, and its label."""

    views: list[Tensor]
    ids: list[int]
    label: int


class NLVRBatches(FineTuneBatches[NLVRDataConfig, Statement, StatementExample]):
    """Batches of statements with their images. An epoch contains every statement once."""

    name = "statements"

    def read(self, data: NLVRDataConfig) -> list[Statement]:
        self.items = read_statements(data.train, self.key, data.max_broken)
        self.view = TrainingView(self.image_size, data.max_pixels, data.augment, pixels=data.pixels)
        return self.items

    def example(self, record: Statement, rng: np.random.Generator) -> StatementExample:
        sentence = cleaned(record.sentence, self.text.max_words)
        may_flip = not (self.data.careful_flip and mentions_side(sentence))
        views = [self.view(image, rng, may_flip=may_flip) for image in record.images]
        return StatementExample(views, self.text.token_ids(sentence), record.label)

    def filler(self) -> StatementExample:
        views = [self.view.filler()] * len(self.items[0].images)
        return StatementExample(views, self.text.token_ids(FILLER_TEXT), 0)

    def collate(self, examples: Sequence[StatementExample], valid: Tensor, **fields: Any) -> StatementBatch:
        by_place = zip(*(example.views for example in examples), strict=True)  # the first images, then the second ones
        return StatementBatch(
            pixels=stack_views([view for views in by_place for view in views], self.image_size),
            text=self.text.stack_plain([example.ids for example in examples]),
            label=torch.tensor([example.label for example in examples]),
            valid=valid,
            **fields,
        )
