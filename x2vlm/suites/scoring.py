"""Scores of the cases of a suite by a model, with and without looking at images and texts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image as PILImage
from tqdm import tqdm

from dataset.media.encoded import decode
from dataset.records.broken import BrokenRecordError
from dataset.records.schema import ImageSource
from models.inference.reranking import TextBank
from utils.errors import UserError
from x2vlm.base import LoadedModel
from x2vlm.inputs import View
from x2vlm.matching import sums
from x2vlm.suites.cases import Case, Picture

SCORES = {
    "cosine": "cosine of the embeddings",
    "matching": "matching head",
    "both": "their sum, the cosine over the temperature",
}
GREY = 128
"""Value of all pixels of the image that the text-only baseline sees."""
BLANK = "a picture"
"""The text that the image-only baseline sees in place of each text."""

CaseScores = dict[str, list[np.ndarray]]
"""For each of :data:`SCORES`, the scores (images, texts) of each case."""


def score_cases(model: LoadedModel, cases: Sequence[Case], bar: tqdm | None = None) -> dict[str, CaseScores]:
    """Scores all combinations of images and texts of each case.

    Returns:
        "model": the scores; "text only": the scores of a grey image with each text; "image only": the scores of each image with
        one text for all, in which a random choice breaks ties.

    Raises:
        UserError: the model has no matching head, or an image cannot be read.
    """
    if not (model.takes("match") and model.takes("embed_images") and model.takes("embed_texts")):
        raise UserError(
            f"{model.origin} is a model of task {model.settings.task}, which does not score images and texts; give one of task "
            "pretrain or retrieval"
        )
    size = model.settings.model.vision.image_size
    height, width = (size, size) if isinstance(size, int) else size
    grey = PILImage.new("RGB", (width, height), (GREY, GREY, GREY))
    rng = np.random.default_rng(0)
    found: dict[str, CaseScores] = {
        look: {score: [] for score in SCORES} for look in ("model", "text only", "image only")
    }
    for batch in _batches(cases, model.batch_size):
        pictures = list(dict.fromkeys(picture for case in batch for picture in case.pictures))
        texts = list(dict.fromkeys([BLANK, *(text for case in batch for text in case.texts)]))
        views = [model.read(grey), *(_view(model, picture) for picture in pictures)]
        row_of = {picture: row for row, picture in enumerate(pictures, 1)}
        column_of = {text: column for column, text in enumerate(texts)}
        table = _Table(model, views, texts, [_asked(batch, picture, column_of) for picture in pictures])
        for case in batch:
            rows, columns = [row_of[each] for each in case.pictures], [column_of[text] for text in case.texts]
            noise = rng.random((len(rows), len(columns))) * 1e-9
            for score in SCORES:
                seen = table.scores(score, rows, columns)
                found["model"][score].append(seen)
                found["text only"][score].append(table.scores(score, [0] * len(rows), columns))
                found["image only"][score].append(table.scores(score, rows, [0] * len(columns)) + noise)
            if bar is not None:
                bar.update()
    return found


class _Table:
    """The scores of the images and texts of a batch of cases, of which the first image and the first text are blank.

    Args:
        model: the model.
        views: the images.
        texts: the texts.
        asked: for each image but the first, the indices of the texts with which it is scored.
    """

    def __init__(self, model: LoadedModel, views: Sequence[View], texts: Sequence[str], asked: Sequence[list[int]]):
        self.cosine = model.embed_images(list(views)) @ model.embed_texts(list(texts)).T
        self.margins = np.full((len(views), len(texts)), np.nan)
        indices = [list(range(len(texts))), *asked]
        with model.runtime.running():
            bank = TextBank.of([model.encoded(texts)])
            size = model.batch_size
            for start in range(0, len(views), size):
                states = model.runtime.image_states(model.pixels(list(views[start : start + size])))
                chosen = [torch.tensor(each) for each in indices[start : start + size]]
                for row, (columns, margins) in enumerate(
                    zip(chosen, model.runtime.margins(states, chosen, bank), strict=True), start
                ):
                    self.margins[row, columns.numpy()] = model.finite(margins.double().cpu().numpy())
        self.both = sums(model, self.margins, self.cosine)

    def scores(self, score: str, rows: Sequence[int], columns: Sequence[int]) -> np.ndarray:
        """Returns the scores of some images with some texts."""
        table = {"cosine": self.cosine, "matching": self.margins, "both": self.both}[score]
        found: np.ndarray = np.asarray(table, np.float64)[np.ix_(rows, columns)]
        return found


def _asked(cases: Sequence[Case], picture: Picture, column_of: dict[str, int]) -> list[int]:
    """Returns the columns of the texts with which a picture is scored: the blank one, and those of its cases."""
    texts = dict.fromkeys(text for case in cases if picture in case.pictures for text in case.texts)
    return [0, *(column for text in texts if (column := column_of[text]))]


def _batches(cases: Sequence[Case], size: int) -> Iterator[Sequence[Case]]:
    for start in range(0, len(cases), size):
        yield cases[start : start + size]


def _view(model: LoadedModel, picture: Picture) -> View:
    """Returns the view of an image or of the part of it in the box, which is clipped to the image and has at least one pixel."""
    if picture.box is None:
        return model.read(picture.path)
    place = str(picture.path)
    try:
        image = decode(ImageSource(place, path=picture.path).load(), model.settings.data.max_pixels, place, "unturned")
    except BrokenRecordError as error:
        raise UserError(str(error)) from None
    x, y, width, height = picture.box
    rows, columns = _pixels(y, height, image.shape[1]), _pixels(x, width, image.shape[2])
    return model.read(image[:, rows, columns])


def _pixels(start: float, length: float, side: int) -> slice:
    first = min(max(0, math.floor(start)), side - 1)
    return slice(first, max(first + 1, min(side, math.ceil(start + length))))


def missing_pictures(cases: Sequence[Case]) -> list[Path]:
    """Returns the image files that do not exist, in order."""
    paths = dict.fromkeys(picture.path for case in cases for picture in case.pictures)
    return [path for path in paths if not path.is_file()]
