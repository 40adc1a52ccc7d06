"""The contrastive loss between two views of each example (section 3.3, eq. 1)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal, NamedTuple

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
from utils.errors import UserError

if TYPE_CHECKING:
    from models.gradient_cache import CachedLoss

GREATEST_TEMPERATURE = 0.5


class ContrastiveConfig(Config):
    """The contrastive loss over the global batch."""

    loss: Literal["softmax", "sigmoid"] = Field(
        "softmax",
        description="softmax: equation 1 of the paper; sigmoid: each pair is judged alone, matched or not (SigLIP)",
    )
    bias: float = Field(
        -10.0,
        description="initial bias of the sigmoid loss, which is learned; -log of the examples in a global batch is what a model "
        "that knows nothing should have (SigLIP: -10)",
    )
    least_temperature: float = Field(
        0.001,
        gt=0,
        le=GREATEST_TEMPERATURE,
        description="the learned temperature does not fall below this. Few images are soon known by heart, it falls, and images "
        "that were not seen are ranked worse: the initial temperature may be the better limit there",
    )
    text: Literal["cls", "mean"] = Field(
        "cls",
        description="what represents a text: cls: the state of its first token (published); mean: the mean of its tokens' "
        "states, as sentence encoders such as MiniLM were trained",
    )
    text_projection: Literal["random", "identity"] = Field(
        "random",
        description="what the projection of texts starts from. identity: the joint space begins as the text encoder's own, which "
        "keeps what that knows of words that no training text has; embed_dim must be its width",
    )
    gradient: Literal["exact", "released"] = Field(
        "exact",
        description="exact: the gradient that one process with the whole batch has; released: on several ranks, the "
        "embeddings receive 1/ranks of it, since the released code passes no gradient to gathered embeddings (the "
        "temperature's is exact)",
    )
    chunks: int = Field(
        1,
        ge=1,
        description="micro-batches of a rank that this loss takes as one, so that it has that many times the negatives; their "
        "encoders run twice (gradient caching). It must divide the accumulation",
    )


@dataclass(frozen=True)
class Examples:
    """The examples (batch rows) of a loss, equally many on each rank.

    ``valid`` (N,) bool marks the examples that count. ``key`` (N,) int64 is equal for examples that the losses must not tell
    apart; ``same_key`` is their role for each other in the contrastive loss.
    """

    valid: Tensor
    key: Tensor
    same_key: losses.SameKey

    def allowed_negatives(self) -> Tensor:
        """Mask (N, N) of the examples that may serve as each other's negatives in the matching loss."""
        return allowed_negatives(self.valid, None if self.same_key == "negative" else self.key)


class EmbeddedExamples(NamedTuple):
    """Examples of this rank with their normalised embeddings, ``image`` and ``text`` (N, E) (of translations: both of texts)."""

    image: Tensor
    text: Tensor
    examples: Examples


def masked_mean(states: Tensor, mask: Tensor) -> Tensor:
    """The mean (N, D) of the token states (N, L, D) of each text; ``mask`` (N, L) bool, True = token."""
    total = states.masked_fill(~mask.unsqueeze(2), 0).sum(dim=1)
    return total / mask.sum(dim=1, keepdim=True).clamp(min=1)


class ContrastiveHead(nn.Module):
    """Projections to the joint space, and the temperature."""

    bias: nn.Parameter | None

    def __init__(
        self, vision_width: int, text_width: int, embed_dim: int, temperature: float, config: ContrastiveConfig
    ):
        super().__init__()
        self.config = config
        self.vision_proj = nn.Linear(vision_width, embed_dim)
        self.text_proj = nn.Linear(text_width, embed_dim)
        if config.text_projection == "identity":
            if text_width != embed_dim:
                raise UserError(
                    f"model.contrastive.text_projection is identity, but model.embed_dim is {embed_dim} and the text encoder's "
                    f"width {text_width}; set embed_dim to {text_width}"
                )
            nn.init.eye_(self.text_proj.weight)
            nn.init.zeros_(self.text_proj.bias)
        self.temperature = nn.Parameter(torch.tensor(temperature))
        self.register_parameter("bias", nn.Parameter(torch.tensor(config.bias)) if config.loss == "sigmoid" else None)
        self.cached: Iterator[CachedLoss] | None = None
        """Losses of the forward passes to come: see :mod:`models.gradient_cache`."""

    def embed_image(self, concepts: Concepts) -> Tensor:
        """Normalised embeddings (R, E) of visual concepts, at least float32."""
        return F.normalize(losses.at_least_float32(self.vision_proj(concepts.mean)), dim=1)

    def embed_text(self, texts: PackedTexts) -> Tensor:
        """Normalised embeddings (N, E) of texts, at least float32."""
        if self.config.text == "cls":
            return self._embed(texts.cls)
        return self.embed_padded(texts.padded(), texts.packing.mask)

    def embed_padded(self, states: Tensor, mask: Tensor) -> Tensor:
        """Normalised embeddings (N, E) of texts by their token states (N, L, D); ``mask`` (N, L) bool, True = token."""
        return self._embed(states[:, 0] if self.config.text == "cls" else masked_mean(states, mask))

    def _embed(self, states: Tensor) -> Tensor:
        return F.normalize(losses.at_least_float32(self.text_proj(states)), dim=1)

    @property
    def scalars(self) -> tuple[nn.Parameter, ...]:
        """The parameters of the loss itself: the temperature, and with the sigmoid loss the bias."""
        return (self.temperature,) if self.bias is None else (self.temperature, self.bias)

    def clamp_temperature(self) -> None:
        """Keep the temperature in its range, before each step (0.001 to 0.5 as released)."""
        with torch.no_grad():
            self.temperature.clamp_(self.config.least_temperature, GREATEST_TEMPERATURE)

    def similarity(self, image: Tensor, text: Tensor) -> Tensor:
        """Cosine similarity (R, N), divided by the temperature, of all pairs of embeddings (R, E) and (N, E)."""
        with torch.autocast(image.device.type, enabled=False):
            return image @ text.t() / self.temperature

    def start_loss(self, embedded: EmbeddedExamples) -> Callable[[], Tensor]:
        """Start the loss (eq. 1, or the sigmoid loss) over the global batch, summed over this rank's valid examples; each rank
        computes its local sum alone.

        The method returns while the embeddings (N, E) of all ranks are still being gathered, so that the caller can start other
        work. The function that it returns waits for them and computes the loss. The gradient is that of the single-process loss,
        or 1/ranks of it (``config.gradient``).
        """
        if self.cached is not None:
            return partial(next(self.cached).loss, embedded, self.scalars)
        image, text, examples = embedded
        if self.config.gradient == "released":
            share = 1 / distributed.world_size()
            image, text = (distributed.scale_gradient(embed, share) for embed in (image, text))
        local = losses.ContrastiveExamples(image, text, examples.valid, examples.key)
        wait_embeds = distributed.start_gather(torch.cat([image, text], dim=1))
        wait_keys = distributed.start_gather(torch.stack([examples.valid.long(), examples.key], dim=1))

        def finish() -> Tensor:
            (images, texts), (valid, key) = wait_embeds().split(image.shape[1], dim=1), wait_keys().unbind(dim=1)
            all_ranks = losses.ContrastiveExamples(images, texts, valid.bool(), key)
            with torch.autocast(image.device.type, enabled=False):
                offset = distributed.rank() * len(examples.valid)
                if self.bias is not None:
                    scalars = self.temperature, self.bias
                    return losses.sigmoid_contrastive(local, all_ranks, offset, *scalars, examples.same_key)
                return losses.contrastive(local, all_ranks, offset, self.temperature, examples.same_key)

        return finish
