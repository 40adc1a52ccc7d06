"""The functions of a model that a search uses. One function computes the tokens of an image, which can be cached; the others
compare texts with these tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from models.config import AligningConfig
from utils.errors import UserError
from x2vlm.base import LoadedModel, Matcher
from x2vlm.inputs import Image
from x2vlm.runtime import Located


class Encoder:
    """An image model with a contrastive and a matching head.

    Attributes:
        width: size of the embeddings.
        weights: digest of the model's weights and hyperparameters.
        token_shape: (1 + P, D), the shape of the result of :meth:`tokens`.

    Raises:
        UserError: the model was trained with a different task, or is a video model.
    """

    def __init__(self, model: LoadedModel):
        if not model.takes("match"):
            raise UserError(
                f"{model.origin} is a model for the task {model.settings.task}, which cannot compare texts with images",
                remedy="load a model for the task pretrain or retrieval",
            )
        if model.read.videos is not None:
            raise UserError(
                f"{model.origin} is a video model, but an index contains images", remedy="pass an image model"
            )
        assert isinstance(model.settings.model, AligningConfig)
        self.model, self.runtime = model, model.runtime
        self.width, self.weights = model.settings.model.embed_dim, self.runtime.weights
        self.token_shape = self.runtime.state_shape

    def tokens(self, image: Image) -> Tensor:
        """Returns the mean patch and the patches of an image, (1 + P, D) float32."""

        def encode(images: Sequence[Image]) -> list[Tensor]:
            return list(self.runtime.image_states(self.model.pixels(self.model.views(images))).float().cpu())

        return self.model.run([image], encode)[0]

    def locate(self, tokens: Sequence[Tensor], text: str) -> Located:
        """Returns the box of a text in each of several images, and its score.

        Raises:
            UserError: the model has no box head.
        """
        if not self.model.takes("locate"):
            raise UserError(
                f"{self.model.origin} is a model for the task {self.model.settings.task}, which was not trained for "
                "this call",
                where="locate",
                remedy="make the index with a model for the task pretrain",
            )

        def find(texts: Sequence[str]) -> list[Located]:
            stacked = torch.stack(list(tokens)).to(self.runtime.device)
            packed = self.model.encoded(list(texts) * len(stacked))
            return [self.runtime.locate(stacked, packed, torch.arange(len(stacked)).to(stacked.device))]

        return self.model.run([text], find)[0]

    def margins(self, tokens: Sequence[Tensor], text: str) -> np.ndarray:
        """Returns the log-odds that a text is about each of several images, (images,) float64. The images are represented by
        their tokens."""
        stacked, first = torch.stack(list(tokens)).to(self.runtime.device), torch.zeros(1, dtype=torch.int64)
        return np.concatenate(Matcher(self.model, [text]).margins(stacked, [first] * len(stacked)))
