"""Measures how well texts fit images. The measure is the matching head's probability or, if the model's config says so, a sum of
its log-odds and the cosine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from utils.errors import UserError

if TYPE_CHECKING:
    from x2vlm.base import LoadedModel
    from x2vlm.inputs import View


@dataclass(frozen=True)
class Match:
    """A measurement of how well a text fits an image. The ``probability`` is from the matching head. ``cosine`` is None if the
    model's config has ``evaluation.score: matching``, and ``sum`` (see :func:`sums`) unless it has ``evaluation.score: sum``."""

    text: str
    probability: float
    cosine: float | None = None
    sum: float | None = None


def matches(model: LoadedModel, views: Sequence[View], texts: Sequence[str]) -> list[list[Match]]:
    """Returns the texts for each image, best first, by the score that the model's config names (``evaluation.score``)."""
    margins = model.margins(views, texts).astype(np.float64)
    ranking, scores = margins, probabilities(margins)
    columns = [scores]
    if model.settings.evaluation.score != "matching":
        ranking = cosines = model.embed_images(views) @ model.embed_texts(texts).T
        columns.append(cosines)
    if model.settings.evaluation.score == "sum":
        ranking = sums(model, margins, cosines)
        columns.append(ranking)
    rows = zip(*(column.tolist() for column in columns), strict=True)
    found = [[Match(*each) for each in zip(texts, *row, strict=True)] for row in rows]
    orders = np.argsort(-ranking, axis=1, kind="stable")
    return [[row[index] for index in order] for row, order in zip(found, orders, strict=True)]


def probabilities(margins: np.ndarray) -> np.ndarray:
    """Converts log-odds to probabilities, float64 of the same shape."""
    return 1 / (1 + np.exp(-np.clip(np.asarray(margins, np.float64), -700, 700)))


def sums(model: LoadedModel, margins: np.ndarray, cosines: np.ndarray) -> np.ndarray:
    """Returns the log-odds of the matching head, multiplied by ``evaluation.matching_weight``, plus the cosines divided by the
    temperature, float64 of the same shape. With ``evaluation.score: sum``, candidates are ranked by these sums.

    Raises:
        UserError: the model is an export that does not record the temperature.
    """
    if model.runtime.temperature is None:
        raise UserError(
            f"{model.origin} does not record its temperature, which evaluation.score: sum requires",
            remedy="export it again",
        )
    weighted: np.ndarray = model.settings.evaluation.matching_weight * np.asarray(margins, np.float64)
    return weighted + np.asarray(cosines, np.float64) / model.runtime.temperature


def formatted_scores(probability: float | None, cosine: float | None, summed: float | None) -> dict[str, str]:
    """Returns the sum, the probability and the cosine, formatted for printing, by name. Values that are None are omitted."""
    shown = {
        "sum": None if summed is None else f"{summed:+.2f}",
        "probability": None if probability is None else f"{probability:.3f}",
        "cosine": None if cosine is None else f"{cosine:+.3f}",
    }
    return {name: text for name, text in shown.items() if text is not None}
