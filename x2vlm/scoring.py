"""Scores boxes that another program has found: how well each phrase fits the content of each box, and whether it is in the image
at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from models.core.packing import PackedTexts
from models.core.vision import Concepts
from models.inference.reranking import AligningModel, log_odds
from models.pretraining.model import PretrainModel
from utils.errors import UserError
from x2vlm.base import LoadedModel, as_texts
from x2vlm.boxes import best_boxes, content_of
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
        absent: probability that each phrase is nowhere in the image, (P,) float32: one minus the highest of its matching
            probabilities in the boxes and, for a pre-trained model, in the box where the model itself would locate it, or for a
            retrieval model, in the whole image.
    """

    phrases: list[str]
    cosine: np.ndarray
    matching: np.ndarray
    absent: np.ndarray


def box_scores(
    model: LoadedModel,
    images: Image | Sequence[Image],
    boxes: Sequence[Sequence[float]] | Sequence[Sequence[Sequence[float]]],
    phrases: str | Sequence[str] | Sequence[Sequence[str]],
    unit: Unit = "pixels",
) -> list[BoxScores]:
    """Scores the boxes of images; see :meth:`x2vlm.Model.score`."""
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

    def score(items: Sequence[tuple[Image, Sequence[Sequence[float]], list[str]]]) -> list[BoxScores]:
        views = model.views([image for image, _, _ in items])
        relative = [
            _relative(boxes, view.size, view.name, unit) for view, (_, boxes, _) in zip(views, items, strict=True)
        ]
        texts = list(dict.fromkeys(text for _, _, phrases in items for text in phrases))
        numbers = {text: number for number, text in enumerate(texts)}
        packed = model.encoded(texts)
        states = model.check_finite(model.runtime.image_states(model.pixels(views)))
        scores = []
        for image, of_image, (_, _, phrases) in zip(states.each(), relative, items, strict=True):
            of_phrases = packed.select(torch.tensor([numbers[text] for text in phrases], device=packed.states.device))
            scores.append(_scores(network, image, of_image, of_phrases, phrases))
        return scores

    return model.run(list(zip(listed, all_boxes, all_phrases, strict=True)), score)


def _scores(
    network: AligningModel, image: Concepts, boxes: Tensor, texts: PackedTexts, phrases: list[str]
) -> BoxScores:
    """Scores the boxes (B, 4) of an image, given as centre and size relative to the image."""
    count, device = len(phrases), image.patches.device
    embedded, rows = network.contrastive.embed_text(texts), max(1, PAIRS // count)
    cosines, margins = [embedded.new_zeros(0, count)], [embedded.new_zeros(0, count)]
    whole = torch.tensor([[0.5, 0.5, 1.0, 1.0]])
    scored = boxes if isinstance(network, PretrainModel) else torch.cat([boxes, whole])
    for start in range(0, len(scored), rows):
        some = scored[start : start + rows]
        regions = content_of(network.vision, image, some, torch.zeros(len(some), dtype=torch.long, device=device))
        cosines.append(network.contrastive.embed_image(regions) @ embedded.T)
        each = texts.select(torch.arange(count, device=device).repeat(len(some)))
        cls = network.fusion.cls(each, network.fusion.project_regions(regions, image)[0])
        margins.append(log_odds(network.matching_head(cls)).view(-1, count))
    matching = probabilities(torch.cat(margins).float().cpu().numpy()).astype(np.float32)
    found = matching
    if isinstance(network, PretrainModel):
        scores = best_boxes(network, texts, image, torch.zeros(count, dtype=torch.long, device=device))[1]
        found = np.concatenate([matching, np.array([scores], dtype=np.float32)])
    cosine = torch.cat(cosines).float().cpu().numpy()
    return BoxScores(phrases, cosine[: len(boxes)], matching[: len(boxes)], 1 - found.max(axis=0))


def _relative(boxes: Sequence[Sequence[float]], size: tuple[int, int], image: str, unit: Unit) -> Tensor:
    """Converts the boxes of an image, x, y, width and height in ``unit``, to centre and size relative to the image, (B, 4). Parts
    of boxes outside the image are cut off.

    Raises:
        UserError: a box has no area in the image, or is not four numbers.
    """
    scale = np.array(size if unit == "pixels" else (1, 1), dtype=np.float64)
    relative = torch.empty(len(boxes), 4)
    for number, box in enumerate(boxes):
        try:
            corner, extent = np.array(box, dtype=np.float64).reshape(2, 2) / scale
        except (TypeError, ValueError):
            raise UserError(
                f"box {number} is {box!r}, not four numbers", where=image, remedy="pass x, y, width and height"
            ) from None
        low, high = corner.clip(0, 1), (corner + extent).clip(0, 1)
        if not (high > low).all():  # also if a number is NaN
            raise UserError(
                f"box {number}, {tuple(box)} in {unit}, has no area in this image of {size[0]} x {size[1]} pixels",
                where=image,
                remedy="pass x, y, width and height inside the image",
            )
        relative[number] = torch.from_numpy(np.concatenate([(low + high) / 2, high - low]))
    return relative
