"""Scores boxes that another program has found: how well each phrase fits the content of each box, and whether it is in the image
at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from metrics.calibration import ModelCalibration
from models.core.packing import PackedTexts
from models.core.vision import Concepts
from models.inference.reranking import AligningModel, log_odds
from models.pretraining.model import PretrainModel
from utils.errors import UserError
from x2vlm.base import LoadedModel, as_texts
from x2vlm.boxes import Box, TypedBox, content_of
from x2vlm.inputs import Image, as_list
from x2vlm.matching import probabilities

PAIRS = 512
"""Maximum number of pairs of a box and a phrase that pass through the fusion encoder together."""

Unit = Literal["pixels", "fractions"]
"""Unit of boxes: pixels of the displayed image, or fractions of its width and height."""


@dataclass(frozen=True)
class BoxScores:
    """How well P phrases fit the B boxes of an image.

    Attributes:
        phrases: the phrases.
        cosine: cosine of the embeddings of each box and each phrase, (B, P) float32.
        matching: probability of the matching head that each phrase describes the content of each box, (B, P) float32.
        probability: calibrated probability of the same, (B, P) float32; None if the model is not calibrated (``run.py
            calibrate``).
        absent: probability that each phrase is nowhere in the image, (P,) float32, judged by the box where a pre-trained model
            would locate the phrase, or by the whole image for a retrieval model. It is calibrated if the model is; otherwise, it
            is one minus the probability of the matching head.
    """

    phrases: list[str]
    cosine: np.ndarray
    matching: np.ndarray
    probability: np.ndarray | None
    absent: np.ndarray

    @classmethod
    def of(cls, evidence: Evidence, calibration: ModelCalibration | None) -> BoxScores:
        """Converts the evidence of an image to probabilities."""
        matching, present = (probabilities(scores[..., 0]) for scores in (evidence.boxes, evidence.present))
        probability = None
        if calibration is not None:
            probability, present = calibration.match(evidence.boxes), calibration.present(evidence.present)
            probability = probability.astype(np.float32)
        cosine, matching, absent = (each.astype(np.float32) for each in (evidence.boxes[..., 1], matching, 1 - present))
        return cls(evidence.phrases, cosine, matching, probability, absent)

    @property
    def fit(self) -> np.ndarray:
        """The probability that each phrase describes each box, (B, P): calibrated, if the model is."""
        return self.matching if self.probability is None else self.probability

    def tables(self) -> dict[str, np.ndarray]:
        """Returns the scores of boxes and phrases, (B, P) each, by name."""
        tables = {"probability": self.probability, "matching": self.matching, "cosine": self.cosine}
        return {name: table for name, table in tables.items() if table is not None}


@dataclass(frozen=True)
class Evidence:
    """The scores of an image that are converted to probabilities. The last axis is the log-odds of the matching head, and the
    cosine.

    Attributes:
        phrases: the P phrases.
        boxes: scores of each box and each phrase with which it is compared, (B, P, 2) or (B, 1, 2) float64.
        present: scores of each phrase in the box where the model locates it, or in the whole image, (P, 2) float64.
    """

    phrases: list[str]
    boxes: np.ndarray
    present: np.ndarray


def formatted_lines(boxes: Sequence[TypedBox], scores: BoxScores) -> list[str]:
    """Returns the scores of boxes as lines, below a line that names the columns. The last lines are the probabilities that the
    phrases are absent."""
    tables = scores.tables()
    lines = [f"x, y, width x height  {'  '.join(tables)}  phrase"]
    for row, (x, y, width, height) in enumerate(boxes):
        for column, phrase in enumerate(scores.phrases):
            shown = "  ".join(f"{table[row, column]:.3f}" for table in tables.values())
            lines.append(f"{x:g}, {y:g}, {width:g} x {height:g}  {shown}  {phrase}")
    absent = zip(scores.phrases, scores.absent.tolist(), strict=True)
    return [*lines, *(f"absent  {probability:.3f}  {phrase}" for phrase, probability in absent)]


def most_probable(boxes: Sequence[TypedBox], scores: BoxScores) -> list[Box]:
    """Returns each box with the phrase that fits it best, and the probability of this phrase."""
    best = scores.fit.argmax(axis=1).tolist()
    return [
        Box(scores.phrases[column], *box, float(scores.fit[row, column]))
        for row, (box, column) in enumerate(zip(boxes, best, strict=True))
    ]


def evidence(
    model: LoadedModel,
    images: Image | Sequence[Image],
    boxes: Sequence[Sequence[float]] | Sequence[Sequence[Sequence[float]]],
    phrases: str | Sequence[str] | Sequence[Sequence[str]],
    unit: Unit = "pixels",
    labels: Sequence[Sequence[int]] | None = None,
) -> list[Evidence]:
    """Returns the evidence of each image.

    Args:
        model, images, boxes, phrases, unit: see :meth:`x2vlm.Model.score`.
        labels: for each image, the number of the one phrase that each box is compared with, so that ``Evidence.boxes`` is
            (B, 1, 2); if None, each box is compared with all phrases.
    """
    model.require("score")
    network = model.network
    assert isinstance(network, AligningModel)
    if unit not in ("pixels", "fractions"):
        raise UserError(f"unit is {unit!r}", where="score", remedy="pass 'pixels' or 'fractions'")
    if model.read.videos is not None:
        raise UserError(f"{model.origin} is a video model", where="score", remedy="load a model for images")
    listed: list[Any] = as_list(images)
    is_single = len(listed) == 1 and listed[0] is images
    all_boxes: list[Any] = [boxes] if is_single else list(boxes)
    all_phrases = [as_texts(each) for each in ([phrases] if is_single else phrases)]
    if not len(listed) == len(all_boxes) == len(all_phrases):
        raise UserError(
            f"{len(listed)} images, {len(all_boxes)} lists of boxes and {len(all_phrases)} lists of phrases",
            where="score",
            remedy="pass a list of boxes and a list of phrases for each image",
        )
    if not all(all_phrases):
        raise UserError("an image has no phrases", where="score", remedy="pass at least one for each image")

    def score(items: Sequence[tuple[Any, ...]]) -> list[Evidence]:
        views = model.views([image for image, *_ in items])
        texts = list(dict.fromkeys(text for _, _, phrases, _ in items for text in phrases))
        numbers = {text: number for number, text in enumerate(texts)}
        packed = model.encoded(texts)
        states = model.check_finite(model.runtime.image_states(model.pixels(views)))
        scores = []
        for image, view, (_, boxes, phrases, chosen) in zip(states.each(), views, items, strict=True):
            of_phrases = packed.select(torch.tensor([numbers[text] for text in phrases], device=packed.states.device))
            relative = _relative(boxes, view.size, view.name, unit)
            compared = torch.arange(len(phrases)).expand(len(boxes), -1)
            if chosen is not None:
                compared = torch.tensor(chosen, dtype=torch.long).unsqueeze(1)
            scores.append(Evidence(phrases, *_scores(network, image, relative, of_phrases, compared)))
        return scores

    all_labels: Sequence[Sequence[int] | None] = labels or [None] * len(listed)
    return model.run(list(zip(listed, all_boxes, all_phrases, all_labels, strict=True)), score)


def _scores(
    network: AligningModel, image: Concepts, boxes: Tensor, texts: PackedTexts, compared: Tensor
) -> tuple[np.ndarray, np.ndarray]:
    """Scores texts in an image; returns the last two fields of :class:`Evidence`.

    Args:
        network: the model.
        image: the encoded image.
        boxes: (B, 4), centre and size relative to the image.
        texts: the encoded texts.
        compared: (B, K) int64, the numbers of the texts with which each box is compared.
    """
    embedded = network.contrastive.embed_text(texts)
    compared, every = compared.to(embedded.device), torch.arange(len(embedded), device=embedded.device)

    def scores_in(boxes: Tensor, compared: Tensor) -> Tensor:
        regions = content_of(network.vision, image, boxes, compared.new_zeros(len(boxes)))
        cls = network.fusion.cls(texts.select(compared.flatten()), network.fusion.project_regions(regions, image)[0])
        margins = log_odds(network.matching_head(cls)).view_as(compared)
        cosines = (network.contrastive.embed_image(regions).unsqueeze(1) * embedded[compared]).sum(dim=2)
        return torch.stack([margins, cosines], dim=2)

    if isinstance(network, PretrainModel):
        keys_values = network.fusion.project_concepts(image).select(torch.zeros_like(every))
        own = network.box_head(network.fusion.cls(texts, keys_values)).cpu()
        present = scores_in(own, every.unsqueeze(1))[:, 0]
    else:
        present = scores_in(torch.tensor([[0.5, 0.5, 1.0, 1.0]]), every.unsqueeze(0))[0]
    rows = max(1, PAIRS // max(1, compared.shape[1]))
    found = [
        scores_in(boxes[start : start + rows], compared[start : start + rows]) for start in range(0, len(boxes), rows)
    ]
    of_boxes = torch.cat(found) if found else present.new_zeros(0, compared.shape[1], 2)
    return of_boxes.double().cpu().numpy(), present.double().cpu().numpy()


def _relative(boxes: Sequence[Sequence[float]], size: tuple[int, int], image: str, unit: Unit) -> Tensor:
    """Converts the boxes of an image to centre and size relative to the image, (B, 4); see :func:`relative_box`.

    Raises:
        UserError: a box has no area in the image, or is not four numbers.
    """
    relative = torch.empty(len(boxes), 4)
    for number, box in enumerate(boxes):
        try:
            found = relative_box(box, size, unit)
        except (TypeError, ValueError):
            raise UserError(
                f"box {number} is {box!r}, not four numbers", where=image, remedy="pass x, y, width and height"
            ) from None
        if found is None:
            raise UserError(
                f"box {number}, {tuple(box)} in {unit}, has no area in this image of {size[0]} x {size[1]} pixels",
                where=image,
                remedy="pass x, y, width and height inside the image",
            )
        relative[number] = torch.from_numpy(found)
    return relative


def relative_box(box: Sequence[float], size: tuple[int, int], unit: Unit) -> np.ndarray | None:
    """Converts a box, x, y, width and height in ``unit``, to centre and size relative to an image of width and height ``size``,
    (4,). Parts outside the image are cut off; the result is None if nothing remains.

    Raises:
        TypeError, ValueError: the box is not four numbers.
    """
    scale = np.array(size if unit == "pixels" else (1, 1), dtype=np.float64)
    corner, extent = np.array(box, dtype=np.float64).reshape(2, 2) / scale
    low, high = corner.clip(0, 1), (corner + extent).clip(0, 1)
    if not (high > low).all():  # also if a number is NaN
        return None
    return np.concatenate([(low + high) / 2, high - low])
