"""Scores of images and texts by a model, with and without looking at them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image as PILImage

from dataset.media.encoded import decode
from dataset.records.broken import BrokenRecordError
from dataset.records.schema import ImageSource
from models.inference.reranking import TextBank
from utils.errors import UserError
from utils.image_size import sides_of
from utils.progress import progress_bar
from x2vlm.base import LoadedModel
from x2vlm.inputs import View
from x2vlm.matching import sums
from x2vlm.suites.suite import BLANK, GREY, LOOKS, SCORES

TIE = 1e-9
"""Scores that differ by less are tied; the baselines break ties by chance."""


@dataclass(frozen=True)
class Picture:
    """An image file, or the part of it in a box: x, y, width and height in pixels."""

    path: Path
    box: tuple[float, float, float, float] | None = None


Case = tuple[Sequence[Picture], Sequence[str]]
"""Images and texts of which all combinations are scored."""

CaseScores = dict[str, dict[str, list[np.ndarray]]]
"""For each of the scores and looks, the scores (images, texts) of each case."""


def check_scores(model: LoadedModel) -> None:
    """Checks that a model scores images and texts.

    Raises:
        UserError: it does not.
    """
    if not all(model.takes(call) for call in ("match", "embed_images", "embed_texts")):
        raise UserError(
            f"{model.origin} is a model of task {model.settings.task}, which does not score images and texts; give one of task "
            "pretrain or retrieval"
        )


def grey_view(model: LoadedModel) -> View:
    """Returns the image that the text-only baseline sees."""
    height, width = sides_of(model.settings.model.vision.image_size)
    return model.read(PILImage.new("RGB", (width, height), (GREY, GREY, GREY)))


def score_cases(model: LoadedModel, cases: Sequence[Case]) -> CaseScores:
    """Scores all combinations of the images and texts of each case.

    Raises:
        UserError: the model does not score images and texts, or an image cannot be read.
    """
    check_scores(model)
    grey, rng = grey_view(model), np.random.default_rng(0)
    found: CaseScores = {score: {look: [] for look in LOOKS} for score in SCORES}
    with progress_bar(total=len(cases), desc="cases", unit="case") as bar:
        for start in range(0, len(cases), model.batch_size):
            batch = cases[start : start + model.batch_size]
            table = _Table(model, grey, batch)
            for pictures, texts in batch:
                rows, columns = [table.rows[each] for each in pictures], [table.columns[text] for text in texts]
                noise = TIE * rng.random((len(rows), len(columns)))
                for score, of_score in table.scores.items():
                    found[score]["model"].append(of_score[np.ix_(rows, columns)])
                    found[score]["text only"].append(of_score[np.ix_([0] * len(rows), columns)])
                    found[score]["image only"].append(of_score[np.ix_(rows, [0] * len(columns))] + noise)
                bar.update()
    return found


class _Table:
    """The scores of the images and texts of some cases.

    Attributes:
        rows, columns: the row of each picture, and the column of each text; the first are of the grey image and the blank text.
        scores: (rows, columns) float64 for each of :data:`SCORES`; the matching head scores only pairs of the same case.
    """

    def __init__(self, model: LoadedModel, grey: View, cases: Sequence[Case]):
        texts_of: dict[Picture, dict[str, None]] = {}
        for pictures, texts in cases:
            for picture in pictures:
                texts_of.setdefault(picture, {}).update(dict.fromkeys(texts))
        texts = list(dict.fromkeys([BLANK, *(text for _, of_case in cases for text in of_case)]))
        self.rows = {picture: row for row, picture in enumerate(texts_of, 1)}
        self.columns = {text: column for column, text in enumerate(texts)}
        views = [grey, *(view_of(model, picture) for picture in texts_of)]
        asked = [sorted({0, *(self.columns[text] for text in of_picture)}) for of_picture in texts_of.values()]
        cosines = model.embed_images(views) @ model.embed_texts(texts).T
        margins = matching_scores(model, views, texts, [list(range(len(texts))), *asked])
        self.scores = {
            "cosine": cosines.astype(np.float64),
            "matching": margins,
            "both": sums(model, margins, cosines),
        }


def matching_scores(
    model: LoadedModel, views: Sequence[View], texts: Sequence[str], asked: Sequence[Sequence[int]]
) -> np.ndarray:
    """Returns the log-odds that texts are about images, (images, texts) float64, NaN for pairs that are not asked for. ``asked``:
    indices of the texts of each image."""
    found = np.full((len(views), len(texts)), np.nan)
    with model.runtime.running():
        bank = TextBank.of([model.encoded(texts)])
        for start in range(0, len(views), model.batch_size):
            states = model.runtime.image_states(model.pixels(list(views[start : start + model.batch_size])))
            columns = [torch.tensor(each) for each in asked[start : start + len(states)]]
            of_images = zip(columns, model.runtime.margins(states, columns, bank), strict=True)
            for row, (of_row, margins) in enumerate(of_images, start):
                found[row, of_row.numpy()] = model.finite(margins.double().cpu().numpy())
    return found


def view_of(model: LoadedModel, picture: Picture) -> View:
    """Returns the view of a picture. A box is clipped to the image, and has at least one pixel.

    Raises:
        UserError: the image cannot be read.
    """
    if picture.box is None:
        return model.read(picture.path)
    place = str(picture.path)
    try:
        content = ImageSource(place, path=picture.path).load()
        image = decode(content, model.settings.data.max_pixels, place, "unturned")
    except BrokenRecordError as error:
        raise UserError(str(error)) from None
    x, y, width, height = picture.box
    return model.read(image[:, _pixels(y, height, image.shape[1]), _pixels(x, width, image.shape[2])])


def _pixels(start: float, length: float, side: int) -> slice:
    first = min(max(0, math.floor(start)), side - 1)
    return slice(first, max(first + 1, min(side, math.ceil(start + length))))
