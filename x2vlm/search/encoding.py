"""What a search asks of a model: tokens of images that can be kept, and how well a text fits them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from models.align import AligningModel
from models.multigrained import MultiGrainedModel
from models.reranking import TextBank, score_pairs
from models.vision import Concepts
from tasks.inference import device_of
from utils.errors import UserError
from x2vlm.boxes import relative_boxes
from x2vlm.inputs import Image
from x2vlm.model import Margin, Model
from x2vlm.search.files import weights_hash


class Encoder:
    """A model of images with a contrastive and a matching head.

    Attributes:
        width: of embeddings.
        weights: the hash of the model's weights.
        token_shape: (1 + P, D), that of :meth:`tokens`.

    Raises:
        UserError: the model is of another task, or one of videos.
    """

    def __init__(self, model: Model):
        if not isinstance(model.network, AligningModel):
            raise UserError(
                f"{model.origin} is a model of task {model.settings.task}, which compares no texts with images; load one of task "
                "pretrain or retrieval"
            )
        if model.read.videos is not None:
            raise UserError(f"{model.origin} is a model of videos; an index is of images: give a model of images")
        self.model, self.network = model, model.network
        self.width, self.weights = self.network.config.embed_dim, weights_hash(self.network)
        self.token_shape = self.network.cost.vision.keys(), self.network.vision.width

    def tokens(self, image: Image) -> Tensor:
        """The mean patch and the patches of an image, (1 + P, D) float32."""

        def encode(images: Sequence[Image]) -> list[Tensor]:
            concepts = self.network.vision(self.model.pixels(self.model.views(images)))
            return list(concepts.tokens().float().cpu())

        return self.model.run([image], encode)[0]

    def locate(self, tokens: Sequence[Tensor], text: str) -> tuple[list[list[float]], list[float | None]]:
        """The box of a text in each of some images, and its score: see :func:`x2vlm.boxes.relative_boxes`.

        Raises:
            UserError: the model has no box head.
        """
        network = self.network
        if not isinstance(network, MultiGrainedModel):
            raise UserError(
                f"locate: {self.model.origin} is a model of task {self.model.settings.task}, which was not trained for it; index "
                "with one of task pretrain"
            )

        def find(texts: Sequence[str]) -> list[tuple[list[list[float]], list[float | None]]]:
            stacked = torch.stack(list(tokens)).to(device_of(network))
            packed = self.model.encoded(list(texts) * len(stacked))
            return [
                relative_boxes(
                    network, packed, Concepts.whole(stacked[:, 1:]), torch.arange(len(stacked)).to(stacked.device)
                )
            ]

        return self.model.run([text], find)[0]

    def match(self, tokens: Sequence[Tensor], text: str) -> np.ndarray:
        """The probability that a text is about each of some images, given by their tokens; (images,) float32."""

        def score(texts: Sequence[str]) -> list[np.ndarray]:
            stacked = torch.stack(list(tokens)).to(device_of(self.network))
            bank = TextBank.of([self.model.encoded(texts)])
            concepts, first = (
                Concepts(stacked[:, 1:], stacked[:, 0]),
                [torch.zeros(1, dtype=torch.int64)] * len(stacked),
            )
            logits = score_pairs(self.network.fusion, Margin(self.network.matching_head), concepts, first, bank)
            return [torch.cat(list(logits)).sigmoid().cpu().numpy()]

        return self.model.run([text], score)[0]
