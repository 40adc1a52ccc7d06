"""The tensor functions that the calls of a model are built on, for models that align images with texts or predict boxes. This
module implements them in torch, and :mod:`x2vlm.export.runtime` implements them with ONNX.

Axes: N images or texts, K = 1 + P states of an image (the mean patch, then its patches), D width, E embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from batches.images import Pixels
from batches.texts import Text
from engine.config import PrecisionName
from models.core.packing import PackedTexts
from models.core.vision import Concepts
from models.core.xvlm import XVLM
from models.inference.reranking import AligningModel, TextBank, log_odds, score_pairs
from models.pretraining.model import PretrainModel
from models.tasks.grounding import GroundingModel
from tasks.inference import device_of, evaluating
from utils.weight_file import identity
from x2vlm.boxes import best_boxes, grids_of, refined_regions
from x2vlm.regions import Boxes, matching_boxes

Located = tuple[list[list[float]], list[float | None]]
"""Boxes as centre and size, relative to their images, and their scores; see :class:`x2vlm.boxes.Box`."""


class Runtime(Protocol):
    """Runs a model's encoders, fusion and heads.

    Attributes:
        device: device of the tensors that its functions take and return.
        parameters: number of parameters.
        weights: digest of the weights and hyperparameters; embeddings of runtimes with equal digests can be compared.
        state_shape: shape (K, D) of an image's states.
        temperature: temperature of the contrastive loss, by which cosines are divided; None if the model has no contrastive loss.
    """

    @property
    def device(self) -> torch.device: ...

    @property
    def parameters(self) -> int: ...

    @property
    def weights(self) -> str: ...

    @property
    def state_shape(self) -> tuple[int, int]: ...

    @property
    def temperature(self) -> float | None: ...

    def running(self) -> AbstractContextManager[None]:
        """Returns the context in which all functions below must be called."""

    def image_states(self, pixels: Pixels) -> Concepts:
        """Returns the states of images, from uint8 pixels (N, 3, S, S), or (N, F, 3, S, S) for videos."""

    def image_embeddings(self, pixels: Pixels) -> Tensor:
        """Returns the embeddings (N, E) of images, float32 of length 1, from pixels as in :meth:`image_states`."""

    def text_states(self, text: Text) -> PackedTexts:
        """Returns the states of the text encoder."""

    def text_embeddings(self, text: Text) -> Tensor:
        """Returns text embeddings (N, E) float32 of length 1."""

    def margins(self, images: Concepts, texts: Sequence[Tensor], bank: TextBank) -> list[Tensor]:
        """Returns, for each of N images, the log-odds that its texts are about the image. ``texts`` and
        ``bank`` are as in :func:`~models.inference.reranking.score_pairs`. Log-odds are returned because float32 cannot
        distinguish probabilities near 1."""

    def locate(self, images: Concepts, texts: PackedTexts, image_index: Tensor) -> Located:
        """Returns the box of each of N texts in image ``image_index`` (N,) int64."""

    def locate_all(self, images: Concepts, texts: PackedTexts, image_index: Tensor, threshold: float) -> list[Boxes]:
        """Returns, for each of N texts, the boxes whose score is at least ``threshold``: either from a box-set head, or regions
        whose content matches the text."""


class TorchRuntime:
    """Runs a torch module in a given precision."""

    def __init__(self, network: XVLM, precision: PrecisionName = "fp32"):
        self.network, self.precision = network, precision

    @property
    def device(self) -> torch.device:
        return device_of(self.network)

    @property
    def parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.network.parameters())

    @property
    def weights(self) -> str:
        return identity(self.network)

    @property
    def state_shape(self) -> tuple[int, int]:
        video = self.network.config.vision.video
        return self.network.cost.vision.keys(1 if video is None else video.frames), self.network.vision.width

    def running(self) -> AbstractContextManager[None]:
        """Returns a context that disables gradients and sets the model's precision."""
        return evaluating(self.network, self.precision)

    def image_states(self, pixels: Pixels) -> Concepts:
        """See :class:`Runtime`."""
        concepts: Concepts = self.network.vision(pixels)
        return concepts

    def image_embeddings(self, pixels: Pixels) -> Tensor:
        """See :class:`Runtime`."""
        return self._aligning.contrastive.embed_image(self.network.vision(pixels)).float()

    def text_states(self, text: Text) -> PackedTexts:
        """See :class:`Runtime`."""
        (states,) = self.network.text([text])
        packed: PackedTexts = states
        return packed

    def text_embeddings(self, text: Text) -> Tensor:
        """See :class:`Runtime`."""
        return self._aligning.contrastive.embed_text(self.text_states(text)).float()

    def margins(self, images: Concepts, texts: Sequence[Tensor], bank: TextBank) -> list[Tensor]:
        """See :class:`Runtime`."""
        network = self._aligning
        return list(map(log_odds, score_pairs(network.fusion, network.matching_head, images, texts, bank)))

    def locate(self, images: Concepts, texts: PackedTexts, image_index: Tensor) -> Located:
        """See :class:`Runtime`."""
        assert isinstance(self.network, PretrainModel | GroundingModel)
        return best_boxes(self.network, texts, images, image_index)

    def locate_all(self, images: Concepts, texts: PackedTexts, image_index: Tensor, threshold: float) -> list[Boxes]:
        """See :class:`Runtime`."""
        network = self.network
        if isinstance(network, GroundingModel):
            sets = network.box_sets(texts, images, image_index)
            return [
                _boxes_above(*each, threshold)
                for each in zip(sets.boxes.cpu(), sets.logits.sigmoid().cpu(), strict=True)
            ]
        assert isinstance(network, PretrainModel)

        def refine(boxes: Tensor, phrases: Tensor) -> tuple[Tensor, Tensor]:
            index = phrases.to(image_index.device)
            return refined_regions(network, texts.select(index), images, boxes, image_index[index])

        best = zip(*best_boxes(network, texts, images, image_index), strict=True)
        return matching_boxes(refine, grids_of(images, network.vision.grid, image_index), list(best), threshold)

    @property
    def temperature(self) -> float | None:
        """See :class:`Runtime`."""
        return self.network.contrastive.temperature.item() if isinstance(self.network, AligningModel) else None

    @cached_property
    def _aligning(self) -> AligningModel:
        assert isinstance(self.network, AligningModel)
        return self.network


def _boxes_above(boxes: Tensor, scores: Tensor, threshold: float) -> Boxes:
    """Returns the boxes (K, 4) whose scores (K,) are at least ``threshold``, best first."""
    order = scores.argsort(descending=True)[: int((scores >= threshold).sum())]
    return list(zip(boxes[order].tolist(), scores[order].tolist(), strict=True))
