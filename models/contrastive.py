"""The contrastive loss between two views of each example (section 3.3, eq. 1)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from models import losses
from models.negatives import allowed_negatives
from models.packing import PackedTexts
from models.vision import Concepts
from utils import distributed
from utils.config import Config

TEMPERATURE_RANGE = (0.001, 0.5)


class ContrastiveConfig(Config):
    """Gradient of the contrastive loss over the global batch."""

    gradient: Literal["exact", "released"] = Field(
        "exact",
        description="exact: that of the single-process loss. released: the embeddings receive 1/ranks of it under DDP, "
        "since the released gather lets only the local slice carry gradient; the temperature's is exact",
    )


@dataclass(frozen=True)
class Examples:
    """The examples (batch rows) of a loss, equally many on each rank.

    ``valid`` (N,) bool, those that count; ``key`` (N,) int64, equal for examples that are not to be told apart; ``same_key``:
    their role for each other in the contrastive loss.
    """

    valid: Tensor
    key: Tensor
    same_key: losses.SameKey

    def allowed_negatives(self) -> Tensor:
        """Which examples may serve as each other's negatives in the matching loss, (N, N) bool."""
        return allowed_negatives(self.valid, None if self.same_key == "negative" else self.key)


class ContrastiveHead(nn.Module):
    """Projections to the joint space, and the temperature."""

    def __init__(
        self, vision_width: int, text_width: int, embed_dim: int, temperature: float, config: ContrastiveConfig
    ):
        super().__init__()
        self.config = config
        self.vision_proj = nn.Linear(vision_width, embed_dim)
        self.text_proj = nn.Linear(text_width, embed_dim)
        self.temperature = nn.Parameter(torch.tensor(temperature))

    def embed_image(self, concepts: Concepts) -> Tensor:
        """Normalised embeddings of visual concepts, (R, E), at least float32."""
        return F.normalize(losses.at_least_float32(self.vision_proj(concepts.cls)), dim=1)

    def embed_text(self, texts: PackedTexts) -> Tensor:
        """Normalised embeddings of texts, (N, E), at least float32."""
        return F.normalize(losses.at_least_float32(self.text_proj(texts.cls)), dim=1)

    def clamp_temperature(self) -> None:
        """Keep the temperature in its range, before each step (as released)."""
        with torch.no_grad():
            self.temperature.clamp_(*TEMPERATURE_RANGE)

    def similarity(self, image: Tensor, text: Tensor) -> Tensor:
        """Cosine similarity over temperature of all pairs of embeddings, (R, N)."""
        with torch.autocast(image.device.type, enabled=False):
            return image @ text.t() / self.temperature

    def start_loss(self, image: Tensor, text: Tensor, examples: Examples) -> Callable[[], Tensor]:
        """Eq. 1 over the global batch, summed over this rank's valid examples; each rank computes only its own.

        Returns at once, while the embeddings (N, E) of all ranks are still being gathered, so that other work can be started; the
        function that it returns waits for them and gives the loss. The gradient is that of the single-process loss, or 1/ranks
        of it (``config.gradient``).
        """
        if self.config.gradient == "released":
            share = 1 / distributed.world_size()
            image, text = (distributed.scale_gradient(part, share) for part in (image, text))
        local = losses.ContrastiveRows(image, text, examples.valid, examples.key)
        embeds = distributed.start_gather(torch.cat([image, text], dim=1))
        marks = distributed.start_gather(torch.stack([examples.valid.long(), examples.key], dim=1))

        def finish() -> Tensor:
            (images, texts), (valid, key) = embeds().split(image.shape[1], dim=1), marks().unbind(dim=1)
            everyone = losses.ContrastiveRows(images, texts, valid.bool(), key)
            with torch.autocast(image.device.type, enabled=False):
                offset = distributed.rank() * len(examples.valid)
                return losses.contrastive(local, everyone, offset, self.temperature, examples.same_key)

        return finish
