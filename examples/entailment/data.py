"""Images of a shape, with sentences that are entailed by the image, contradict it, or are neutral. Drawn on first use."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from pydantic import Field
from torch import Tensor

from batches.base import Batch
from batches.images import Pixels, stack_views
from batches.texts import Text
from dataset.broken import BrokenRecordError
from dataset.config import FineTuneDataConfig
from dataset.formats.annotations import ImageFiles, Row, images_folder, parse_rows, read_rows
from dataset.media.sources import ImageSource
from dataset.media.views import EvaluationView, black
from dataset.prepare.tokenizer import train_wordpiece
from dataset.tasks.finetune import FineTuneBatches, cleaned
from utils.config import Config

CLASSES = ("entailment", "neutral", "contradiction")
COLOURS = ("red", "green", "blue", "yellow", "purple")
SHAPES = ("circle", "square")
INVISIBLE = ("old", "heavy", "expensive")
"""Properties that cannot be seen in an image."""

SIZES = {"train": 1500, "val": 150, "test": 150}
SIDE = 32


@dataclass(frozen=True)
class Item:
    """A sentence about an image. ``label`` is the index of its class in :data:`CLASSES`."""

    image: ImageSource
    sentence: str
    label: int

    @property
    def location(self) -> str:
        return self.image.location


@dataclass(frozen=True)
class EntailmentBatch(Batch):
    """N images and sentences: ``pixels`` (N, 3, H, W) uint8, ``label`` (N,) int64. ``valid`` (N,) bool: the real examples."""

    pixels: Pixels
    text: Text
    label: Tensor
    valid: Tensor


class SplitConfig(Config):
    """A split of the drawn data."""

    file: str = Field(
        description="JSON lines with image, sentence and label; image paths are relative to the folder of the file"
    )


class EntailmentDataConfig(FineTuneDataConfig):
    """Location of the data."""

    folder: str = Field(description="folder of the data, which are drawn on first use")
    train: SplitConfig


Example = tuple[Tensor, list[int], int]
"""A view (3, S, S) of an image, the token ids of a sentence, and its label."""


class EntailmentBatches(FineTuneBatches[EntailmentDataConfig, Item, Example]):
    """Batches that contain every sentence once per epoch."""

    name = "sentences"

    def read(self, data: EntailmentDataConfig) -> list[Item]:
        self.view = EvaluationView(self.image_size, data.max_pixels, pixels=data.pixels)
        return read_items(data.train.file, "data.train.file", data.max_broken)

    def example(self, record: Item, rng: np.random.Generator) -> Example:
        sentence = cleaned(record.sentence, self.text.max_words)
        return self.view(record.image), self.text.token_ids(sentence), record.label

    def filler(self) -> Example:
        return black(self.image_size), self.text.token_ids("a"), 0

    def collate(self, examples: Sequence[Example], valid: Tensor, **fields: Any) -> EntailmentBatch:
        pixels, sentences, labels = zip(*examples, strict=True)
        text = self.text.stack_plain(sentences)
        return EntailmentBatch(stack_views(pixels, self.image_size), text, torch.tensor(labels), valid, **fields)


def read_items(file: str, key: str, max_broken: float = 0.0) -> list[Item]:
    """Reads the items of a file. At most the fraction ``max_broken`` of its rows may be broken.

    Raises:
        UserError: if the file cannot be used; the message names the config key ``key``.
    """
    images = ImageFiles(images_folder(None, file))
    return parse_rows(read_rows(file, key), lambda row: _parse(row, images), key, max_broken)


def _parse(row: Row, images: ImageFiles) -> Item:
    label = row.get("label", str)
    if label not in CLASSES:
        raise BrokenRecordError("wrong type", f"label is {label!r}, not one of {', '.join(CLASSES)}")
    return Item(images.find(row.get("image", str), row.location), row.get("sentence", str), CLASSES.index(label))


def draw(folder: Path) -> None:
    """Fills ``folder`` with images, a file for each split and, last, a tokenizer."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    sentences = []
    for number, (split, count) in enumerate(SIZES.items()):
        rng = np.random.default_rng(number)
        rows = [_example(rng, folder, f"images/{split}_{index}.png") for index in range(count)]
        lines = [json.dumps(row) + "\n" for row in rows]
        (folder / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
        sentences += [row["sentence"] for row in rows]
    train_wordpiece(sentences, folder / "tokenizer", vocab_size=100)


def _example(rng: np.random.Generator, folder: Path, name: str) -> dict[str, str]:
    """Draws a shape, and writes a sentence about its colour, about another colour, or about an invisible property."""
    colour, other = rng.permutation(COLOURS)[:2]
    shape, label = rng.choice(SHAPES), CLASSES[int(rng.integers(3))]
    image = Image.new("RGB", (SIDE, SIDE), "white")
    left, top = rng.integers(1, SIDE - 17, 2).tolist()
    canvas = ImageDraw.Draw(image)
    (canvas.ellipse if shape == "circle" else canvas.rectangle)((left, top, left + 15, top + 15), fill=colour)
    image.save(folder / name)
    if label == "neutral":
        sentence = f"the {colour} {shape} is {rng.choice(INVISIBLE)}"
    else:
        sentence = f"there is a {colour if label == 'entailment' else other} {shape}"
    return {"image": name, "sentence": sentence, "label": label}
