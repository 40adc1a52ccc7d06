"""Runs the graphs of an export with onnxruntime on the CPU. Axes are as in :mod:`x2vlm.runtime`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from batches.images import Pixels
from batches.texts import Text
from models.core.packing import PackedTexts, Packing
from models.core.vision import Concepts
from models.inference.reranking import TextBank, score_each
from utils.errors import UserError, reason_of
from utils.extras import require
from utils.image_size import ImageSize, grid_of
from x2vlm.boxes import grids_of, region_masks
from x2vlm.export.files import (
    BOX,
    FUSION,
    IDS,
    IMAGE,
    IMAGE_EMBEDDING,
    IMAGE_MASK,
    IMAGE_STATES,
    MARGIN,
    MASK,
    PIXELS,
    REMEDY,
    TEXT,
    TEXT_EMBEDDING,
    TEXT_MASK,
    TEXT_STATES,
    Metadata,
)
from x2vlm.regions import Boxes, matching_boxes
from x2vlm.runtime import Located


class Graph:
    """An ONNX graph, which onnxruntime runs with the same number of threads as torch.

    Raises:
        UserError: onnxruntime is not installed, or cannot read the file.
    """

    def __init__(self, path: Path):
        self.path = path
        onnxruntime = require("onnxruntime", "onnx", where=path)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3  # log only errors, which are also raised
        # Without this option, the threads of onnxruntime keep spinning after a call, on cores that torch needs for the images.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self.session: Any = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's errors have no common base class
            reason = reason_of(error)
            raise UserError(
                f"onnxruntime {onnxruntime.__version__} cannot run it ({reason})", where=path, remedy=REMEDY
            ) from None
        self.outputs = [each.name for each in self.session.get_outputs()]

    def __call__(self, *wanted: str, **inputs: Tensor) -> list[Tensor]:
        """Returns the outputs named in ``wanted``."""
        arrays = {name: each.numpy() for name, each in inputs.items()}
        try:
            found: list[np.ndarray] = self.session.run(list(wanted), arrays)
        except Exception as error:  # onnxruntime's errors have no common base class
            shapes = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
            raise UserError(
                f"onnxruntime cannot run it on {shapes} ({reason_of(error)})", where=self.path, remedy=REMEDY
            ) from None
        return [torch.from_numpy(array) for array in found]


class OnnxRuntime:
    """See :class:`x2vlm.runtime.Runtime`.

    Args:
        folder: folder with the graphs.
        metadata: description of the export.
        image_size: size of the images in pixels.

    Raises:
        UserError: onnxruntime is not installed, or cannot read a graph.
    """

    device = torch.device("cpu")

    def __init__(self, folder: Path, metadata: Metadata, image_size: ImageSize):
        self.metadata, self.grid = metadata, grid_of(image_size, metadata.patch_size)
        self.image, self.text, self.fusion = (Graph(folder / name) for name in (IMAGE, TEXT, FUSION))

    @property
    def parameters(self) -> int:
        return self.metadata.parameters

    @property
    def weights(self) -> str:
        return self.metadata.weights

    @property
    def state_shape(self) -> tuple[int, int]:
        return self.metadata.state_shape

    @property
    def temperature(self) -> float | None:
        """See :class:`~x2vlm.runtime.Runtime`."""
        return self.metadata.temperature

    def running(self) -> AbstractContextManager[None]:
        """No context is needed."""
        return nullcontext()

    def image_states(self, pixels: Pixels) -> Concepts:
        """See :class:`~x2vlm.runtime.Runtime`."""
        if isinstance(pixels, Tensor):
            return Concepts.of_states(self.image(IMAGE_STATES, **{PIXELS: pixels})[0])
        states = [self.image(IMAGE_STATES, **{PIXELS: image})[0][0] for image in pixels.each_raster()]
        count = self.metadata.state_shape[0]
        padded = [F.pad(each, (0, 0, 0, count - len(each))) for each in states]
        return Concepts.of_states(torch.stack(padded), pixels.grids)

    def image_embeddings(self, pixels: Pixels) -> Tensor:
        """See :class:`~x2vlm.runtime.Runtime`."""
        images = [pixels] if isinstance(pixels, Tensor) else pixels.each_raster()
        return torch.cat([self.image(IMAGE_EMBEDDING, **{PIXELS: image})[0] for image in images])

    def text_states(self, text: Text) -> PackedTexts:
        """See :class:`~x2vlm.runtime.Runtime`."""
        (states,) = self.text(TEXT_STATES, **{IDS: text.ids, MASK: text.mask})
        packing = Packing.of(text.mask.sum(dim=1), text.mask.shape[1])
        return PackedTexts(packing.pack(states), packing)

    def text_embeddings(self, text: Text) -> Tensor:
        """See :class:`~x2vlm.runtime.Runtime`."""
        return self.text(TEXT_EMBEDDING, **{IDS: text.ids, MASK: text.mask})[0]

    def margins(self, images: Concepts, texts: Sequence[Tensor], bank: TextBank) -> list[Tensor]:
        """See :class:`~x2vlm.runtime.Runtime`."""
        each = images.each()

        def score(image: int, candidates: PackedTexts) -> Tensor:
            return self._fuse((MARGIN,), candidates, *_states_and_mask(each[image]))[0][0]

        return score_each(score, texts, bank)

    def locate(self, images: Concepts, texts: PackedTexts, image_index: Tensor) -> Located:
        """See :class:`~x2vlm.runtime.Runtime`."""
        boxes, each = torch.empty(len(image_index), 4), images.each()
        for image in image_index.unique().tolist():
            (phrases,) = torch.where(image_index == image)
            boxes[phrases] = self._fuse((BOX,), texts.select(phrases), *_states_and_mask(each[image]))[0][0]
        scores: list[float | None] = [None] * len(boxes)
        if MARGIN in self.fusion.outputs:
            scores = list(self._refined_regions(texts, images, boxes, image_index)[0].tolist())
        return boxes.tolist(), scores

    def locate_all(self, images: Concepts, texts: PackedTexts, image_index: Tensor, threshold: float) -> list[Boxes]:
        """See :class:`~x2vlm.runtime.Runtime`."""

        def refine(boxes: Tensor, phrases: Tensor) -> tuple[Tensor, Tensor]:
            return self._refined_regions(texts.select(phrases), images, boxes, image_index[phrases])

        best = zip(*self.locate(images, texts, image_index), strict=True)
        return matching_boxes(refine, grids_of(images, self.grid, image_index), list(best), threshold)

    def _refined_regions(
        self, texts: PackedTexts, images: Concepts, boxes: Tensor, image_index: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See :func:`x2vlm.boxes.refined_regions`."""
        patches = images.patches[image_index]
        masks = region_masks(boxes, grids_of(images, self.grid, image_index), patches.shape[1])
        weights = masks.float() / masks.sum(dim=1, keepdim=True)
        regions = torch.cat([weights.unsqueeze(1) @ patches, patches], dim=1)
        margins, refined = self._fuse((MARGIN, BOX), texts, regions, F.pad(masks, (1, 0), value=True))
        return margins.flatten().sigmoid(), refined.flatten(0, 1)

    def _fuse(
        self, wanted: Sequence[str], texts: PackedTexts, images: Tensor, mask: Tensor | None = None
    ) -> list[Tensor]:
        """Returns outputs (B, S, ...) for S texts per image (B, K, D). ``mask`` (B, K) bool is True for states that texts
        attend to; if it is None, texts attend to all states."""
        count = len(images)
        inputs = {
            TEXT_STATES: texts.padded().unflatten(0, (count, -1)),
            TEXT_MASK: texts.packing.mask.unflatten(0, (count, -1)),
            IMAGE_STATES: images,
            IMAGE_MASK: torch.ones(images.shape[:2], dtype=torch.bool) if mask is None else mask,
        }
        return self.fusion(*wanted, **inputs)


def _states_and_mask(image: Concepts) -> tuple[Tensor, Tensor | None]:
    """Returns the states (1, K, D) of an image, and a mask (1, K) that is False for padding, or None without padding."""
    real = image.real_patches()
    return image.states(), None if real is None else F.pad(real, (1, 0), value=True)
