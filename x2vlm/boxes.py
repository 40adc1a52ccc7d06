"""Predicts the boxes of phrases from whole images, and computes the scores of boxes from the patches in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from batches.images import Grid
from dataset.records.boxes import patch_mask
from models.core.losses import at_least_float32
from models.core.packing import PackedTexts
from models.core.vision import Concepts, VisionEncoder
from models.pretraining.model import PretrainModel
from models.tasks.grounding import GroundingModel
from utils.errors import UserError
from utils.numerals import plain_number

TypedBox = tuple[float, float, float, float]
"""A box that a user has typed: x, y, width and height in pixels."""


@dataclass(frozen=True)
class Box:
    """The box of a phrase: ``x`` and ``y`` of its upper left corner, its ``width`` and its ``height``, in pixels of the displayed
    image.

    If the model has a box-set head, the ``score`` is the probability that the box belongs to the phrase. Otherwise, it
    is the probability that the phrase matches the content of the box. Models that were fine-tuned for grounding without a box-set
    head have no matching head either, so their score is None.
    """

    phrase: str
    x: float
    y: float
    width: float
    height: float
    score: float | None = None


def best_boxes(
    network: PretrainModel | GroundingModel, texts: PackedTexts, images: Concepts, image_index: Tensor
) -> tuple[list[list[float]], list[float | None]]:
    """Returns, for each text n, its box in image ``image_index[n]``, as centre and size relative to the image, and the box's
    score; see :class:`Box`."""
    if isinstance(network, GroundingModel) and network.set_head is not None:
        boxes, logits = network.box_sets(texts, images, image_index).best()
        return boxes.tolist(), logits.sigmoid().tolist()
    keys_values = network.fusion.project_concepts(images).select(image_index)
    relative = network.box_head(network.fusion.cls(texts, keys_values)).cpu()
    scores: list[float | None] = [None] * len(relative)
    if isinstance(network, PretrainModel):
        scores = region_scores(network, texts, images, relative, image_index).tolist()
    return relative.tolist(), scores


def region_scores(
    network: PretrainModel, texts: PackedTexts, images: Concepts, boxes: Tensor, image_index: Tensor
) -> Tensor:
    """Returns the probability (N,) that text n matches the content of box n, computed in the same way as for regions in
    pre-training. The ``boxes`` (N, 4) are centre and size, relative to their images.
    """
    return refined_regions(network, texts, images, boxes, image_index)[0]


def refined_regions(
    network: PretrainModel, texts: PackedTexts, images: Concepts, boxes: Tensor, image_index: Tensor
) -> tuple[Tensor, Tensor]:
    """Returns the probability (N,) that text n matches the content of box n, and the box (N, 4) that the box head predicts for
    text n if it sees only the patches that box n touches.

    In pre-training, the box head sees all patches of an image, so the refined box of the whole image is the box of
    :func:`best_boxes`.

    Args:
        network: the model.
        texts: N texts.
        images: I images.
        boxes: (N, 4), centre and size, relative to the images.
        image_index: (N,) int64, the image of each text.
    """
    regions = content_of(network.vision, images, boxes, image_index)
    cls = network.fusion.cls(texts, network.fusion.project_regions(regions, images)[0])
    return at_least_float32(network.matching_head(cls)).softmax(dim=1)[:, 1], network.box_head(cls).float()


def content_of(vision: VisionEncoder, images: Concepts, boxes: Tensor, image_index: Tensor) -> Concepts:
    """Returns the content of boxes as regions: the patches that box n (N, 4), centre and size relative to its image, touches in
    image ``image_index[n]``."""
    masks = region_masks(boxes, grids_of(images, vision.grid, image_index), images.patches.shape[1])
    return vision.regions(images, masks.to(image_index.device), image_index)


def grids_of(images: Concepts, grid: Grid, image_index: Tensor) -> list[Grid]:
    """Returns the rows and columns of patches of the images ``image_index`` (N,): ``grid``, unless images keep their aspect
    ratio."""
    return [grid if images.grids is None else images.grids[image] for image in image_index.tolist()]


def region_masks(boxes: Tensor, grids: Sequence[Grid], length: int) -> Tensor:
    """Returns masks (N, ``length``) bool of the patches that boxes touch.

    Args:
        boxes: (N, 4), centre and size, relative to their images.
        grids: rows and columns of patches of the image of each box.
        length: number of patches of an image, with padding.
    """
    corners = torch.cat([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, 2:]], dim=1)
    masks = []
    for box, (rows, columns) in zip(corners, grids, strict=True):
        in_patches = box * torch.tensor([columns, rows, columns, rows])
        masks.append(F.pad(patch_mask(in_patches.tolist(), (rows, columns), 1), (0, length - rows * columns)))
    return torch.stack(masks)


def absent(phrases: Sequence[str], boxes: Sequence[Box]) -> list[str]:
    """Returns the phrases without a box, in order."""
    located = {box.phrase for box in boxes}
    return [phrase for phrase in dict.fromkeys(phrases) if phrase not in located]


def in_pixels(phrase: str, relative: Sequence[float], score: float | None, size: tuple[int, int]) -> Box:
    """Converts a box from relative centre and size to pixels, clipped to its image."""
    cx, cy, w, h = relative
    left, right = (min(max(edge, 0.0), 1.0) * size[0] for edge in (cx - w / 2, cx + w / 2))
    top, bottom = (min(max(edge, 0.0), 1.0) * size[1] for edge in (cy - h / 2, cy + h / 2))
    return Box(phrase, left, top, right - left, bottom - top, score)


def parse_box(text: str) -> TypedBox:
    """Parses a box. Whether it has an area in its image is checked when the image has been read.

    Raises:
        UserError: the text is not four numbers.
    """
    try:
        x, y, width, height = map(plain_number, text.split(","))
    except ValueError:
        raise UserError(
            f"{text!r} is not a box", remedy="pass x, y, width and height in pixels, such as 10,20,64,48"
        ) from None
    return x, y, width, height
