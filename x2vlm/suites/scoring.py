"""Computes a model's scores for pairs of images and texts, and the scores of the baselines, which do not see the images or the
texts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image as PILImage

from dataset.broken import BrokenRecordError
from dataset.media.encoded import decode
from dataset.media.sources import ImageSource
from utils.errors import UserError
from utils.image_size import sides_for
from utils.progress import progress_bar
from x2vlm.base import LoadedModel, Matcher
from x2vlm.inputs import View
from x2vlm.matching import sums
from x2vlm.suites.suite import BLANK, CONDITIONS, GREY, SCORES


@dataclass(frozen=True)
class Picture:
    """An image file or, if a ``box`` (x, y, width, height in pixels) is given, the part of the image inside the box."""

    path: Path
    box: tuple[float, float, float, float] | None = None


@dataclass(frozen=True)
class Case:
    """Images and texts, all combinations of which are scored.

    Attributes:
        kind: what the texts differ in, such as an attribute.
        pictures: the images.
        texts: the texts; the rule of the suite determines which texts are right for which image.
        part: the part to which the case belongs in a mean over parts, such as its relation.
        id: key or index of the case in its official file.
        excluded: the reason why the official protocol excludes the case, such as "their relation is symmetric"; empty if the
            case is not excluded.
    """

    kind: str
    pictures: tuple[Picture, ...]
    texts: tuple[str, ...]
    part: str = ""
    id: str = ""
    excluded: str = ""


@dataclass
class ScoredCases:
    """The scores of cases.

    Attributes:
        cases: the scored cases, in order.
        scores: for each type of score and each of :data:`~x2vlm.suites.suite.CONDITIONS`, the scores (images, texts) of each
            case.
        text_cosines: the cosines (texts, texts) of the embeddings of each case's texts.
        skipped: for each case that cannot be scored, the reason.
        same_texts: number of cases whose texts differ in the file, but are equal after cleaning and truncation.
    """

    cases: list[Case] = field(default_factory=list)
    scores: dict[str, dict[str, list[np.ndarray]]] = field(
        default_factory=lambda: {score: {condition: [] for condition in CONDITIONS} for score in SCORES}
    )
    text_cosines: list[np.ndarray] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    same_texts: int = 0

    def notes(self) -> list[str]:
        """Returns notes for readers of the results."""
        notes = []
        if self.skipped:
            notes.append(f"{len(self.skipped):,} cases could not be scored, such as {self.skipped[0]}")
        if self.same_texts:
            notes.append(
                f"{self.same_texts:,} cases have texts that are equal after they are cleaned and truncated to the "
                "model's maximum length"
            )
        return notes


def check_scores(model: LoadedModel) -> None:
    """Checks that a model scores images and texts.

    Raises:
        UserError: the model does not score images and texts, or it is an export that does not record its temperature.
    """
    for call in ("match", "embed_images", "embed_texts"):
        model.require(call)
    if model.runtime.temperature is None:
        raise UserError(
            f"{model.origin} does not record its temperature, which is needed to add up its scores",
            remedy="export it again",
        )


def all_scores(model: LoadedModel, cosines: np.ndarray, margins: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the :data:`SCORES`, given cosines and log-odds of the same shape, float64."""
    return {
        "cosine": cosines.astype(np.float64),
        "matching": margins.astype(np.float64),
        "sum": sums(model, margins, cosines),
    }


def grey_view(model: LoadedModel) -> View:
    """Returns the image that the text-only baseline sees."""
    height, width = sides_for(model.settings.model.vision.image_size, 1, 1)
    return model.read(PILImage.new("RGB", (width, height), (GREY, GREY, GREY)))


def score_cases(model: LoadedModel, cases: Sequence[Case]) -> ScoredCases:
    """Scores all combinations of the images and texts of each case. Cases with images or texts that cannot be used are skipped.

    Raises:
        UserError: the model does not score images and texts.
    """
    check_scores(model)
    found, grey = ScoredCases(), grey_view(model)
    with progress_bar(total=len(cases), desc="cases", unit="case") as bar:
        for start in range(0, len(cases), model.batch_size):
            batch = cases[start : start + model.batch_size]
            views: dict[Picture, View] = {}
            usable = [case for case in batch if _is_usable(model, case, views, found)]
            table = _Table(model, grey, usable, views)
            for case in usable:
                rows, columns = (
                    [table.rows[each] for each in case.pictures],
                    [table.columns[text] for text in case.texts],
                )
                for score, values in table.scores.items():
                    by_condition = found.scores[score]
                    by_condition["model"].append(values[np.ix_(rows, columns)])
                    by_condition["text only"].append(values[np.ix_([0] * len(rows), columns)])
                    by_condition["image only"].append(values[np.ix_(rows, [0] * len(columns))])
                found.text_cosines.append(table.text_cosines[np.ix_(columns, columns)])
            found.cases += usable
            bar.update(len(batch))
    if not found.cases:
        raise UserError(f"no case can be scored: {found.skipped[0]}")
    return found


def _is_usable(model: LoadedModel, case: Case, views: dict[Picture, View], found: ScoredCases) -> bool:
    """Reads the images of a case into ``views``. If the case cannot be scored, returns False and adds the reason to ``found``."""
    try:
        tokens = [tuple(model.text.token_ids(model.cleaned(text))) for text in case.texts]
        for picture in case.pictures:
            if picture not in views:
                views[picture] = view_of(model, picture)
    except UserError as error:
        found.skipped.append(str(error))
        return False
    found.same_texts += len(set(tokens)) < len(set(case.texts))
    return True


class _Table:
    """The scores of the images and texts in some cases.

    Attributes:
        rows, columns: the row of each picture and the column of each text. The first row belongs to the grey image, and the first
            column to the blank text.
        scores: (rows, columns) float64 for each of :data:`SCORES`; the matching head scores only pairs of the same case.
        text_cosines: (columns, columns) float64.
    """

    def __init__(self, model: LoadedModel, grey: View, cases: Sequence[Case], views: dict[Picture, View]):
        texts_by_picture: dict[Picture, set[str]] = {}
        for case in cases:
            for picture in case.pictures:
                texts_by_picture.setdefault(picture, set()).update(case.texts)
        texts = list(dict.fromkeys([BLANK, *(text for case in cases for text in case.texts)]))
        self.rows = {picture: row for row, picture in enumerate(texts_by_picture, 1)}
        self.columns = {text: column for column, text in enumerate(texts)}
        seen = [grey, *(views[picture] for picture in texts_by_picture)]
        columns = [sorted({0, *(self.columns[text] for text in each)}) for each in texts_by_picture.values()]
        embeddings = model.embed_texts(texts)
        cosines = model.embed_images(seen) @ embeddings.T
        margins = Matcher(model, texts).scores(seen, [list(range(len(texts))), *columns])
        self.text_cosines = (embeddings @ embeddings.T).astype(np.float64)
        self.scores = all_scores(model, cosines, margins)


def view_of(model: LoadedModel, picture: Picture) -> View:
    """Returns the view of a picture. A box is clipped to the image and contains at least one pixel.

    Raises:
        UserError: the image cannot be read.
    """
    if picture.box is None:
        return model.read(picture.path)
    source = ImageSource(str(picture.path), path=picture.path)
    try:
        image = decode(source.load(), model.settings.data.max_pixels, "unturned")
    except BrokenRecordError as error:
        raise UserError(str(error), where=source.location) from None
    x, y, width, height = picture.box
    return model.read(image[:, _pixels(y, height, image.shape[1]), _pixels(x, width, image.shape[2])])


def _pixels(start: float, length: float, side: int) -> slice:
    first = min(max(0, math.floor(start)), side - 1)
    return slice(first, max(first + 1, min(side, math.ceil(start + length))))
