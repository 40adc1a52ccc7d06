"""The contrastive loss between images and texts (section 3.3 of the paper, eq. 1)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Annotated, Literal

import torch
from pydantic import AliasChoices, Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from models.core import losses
from models.core.blocks import MAX_WIDTH
from models.core.losses import EmbeddedPairs, SameGroup
from models.core.packing import PackedTexts
from models.core.vision import Concepts
from models.core.xvlm import ModelConfig
from utils import distributed
from utils.config import Config
from utils.errors import UserError

MAX_TEMPERATURE = 0.5


class ContrastiveConfig(Config):
    """Settings of the contrastive loss, which is computed over the global batch."""

    loss: Literal["softmax", "sigmoid"] = Field(
        "softmax",
        description="type of the loss. softmax: equation 1 of the paper; sigmoid: each pair is classified as matched "
        "or not (SigLIP)",
    )
    bias: float = Field(
        -10.0,
        description="initial value of the learned bias of the sigmoid loss. The best value for an untrained model is "
        "the negative logarithm of the number of examples in a global batch (SigLIP: -10)",
    )
    min_temperature: float = Field(
        0.001,
        # saved runs may contain the previous name
        validation_alias=AliasChoices("min_temperature", "least_temperature"),
        gt=0,
        le=MAX_TEMPERATURE,
        description="lower limit of the learned temperature. On small data sets the images are memorised, the "
        "temperature collapses, and unseen images are ranked worse; on such data sets, the initial temperature may "
        "be a better limit",
    )
    text: Literal["cls", "mean", "last"] = Field(
        "cls",
        description="token states that represent a text. cls: the state of its first token (published); mean: the "
        "mean of its tokens' states, as sentence encoders such as MiniLM were trained; last: the state of its last "
        "token, as SigLIP's text encoder was trained",
    )
    text_projection: Literal["random", "identity"] = Field(
        "random",
        description="initial projection of texts. identity: the joint space starts as the text encoder's own space, "
        "which keeps its knowledge of words that are not in the training texts; embed_dim must be its width",
    )
    gradient: Literal["exact", "released"] = Field(
        "exact",
        description="gradient with several ranks. exact: the same gradient as in one process with the whole batch; "
        "released: with several ranks, embeddings receive 1/ranks of this gradient, because the authors' code passes "
        "no gradient to gathered embeddings (the gradient of the temperature is exact)",
    )
    chunks: Annotated[int, Field(ge=1)] | Literal["step"] = Field(
        1,
        description="number of micro-batches per rank that this loss combines, to increase the number of negatives; "
        "the encoders run twice (gradient caching). It must divide the number of micro-batches per step. step: all "
        "micro-batches of a step, so that the weights do not depend on the number of ranks",
    )


class AligningConfig(ModelConfig):
    """The encoders' settings plus those of the joint embedding space of images and texts, for pre-training and retrieval."""

    embed_dim: int = Field(256, ge=1, le=MAX_WIDTH, description="width of the contrastive embeddings")
    temperature: float = Field(
        0.07,
        gt=0,
        le=MAX_TEMPERATURE,
        description="initial temperature of the contrastive loss; the temperature is learned, between "
        "`contrastive.min_temperature` and 0.5",
    )
    contrastive: ContrastiveConfig = ContrastiveConfig()

    @model_validator(mode="after")
    def _temperature_is_in_its_range(self) -> AligningConfig:
        if self.temperature < (low := self.contrastive.min_temperature):
            raise ValueError(
                f"temperature is {self.temperature:g}, but contrastive.min_temperature is {low:g}; raise the "
                "temperature or lower the limit"
            )
        return self

    @property
    def chunks(self) -> int | Literal["step"]:
        return self.contrastive.chunks


def masked_mean(states: Tensor, mask: Tensor) -> Tensor:
    """The mean (N, D) of the token states (N, L, D) of each text; ``mask`` (N, L) bool, True = token."""
    total = states.masked_fill(~mask.unsqueeze(2), 0).sum(dim=1)
    return total / mask.sum(dim=1, keepdim=True).clamp(min=1)


class ContrastiveHead(nn.Module):
    """Projects images and texts to the joint embedding space, and computes the contrastive loss with a learned temperature."""

    bias: nn.Parameter | None

    def __init__(self, model: AligningConfig, vision_width: int, text_width: int):
        super().__init__()
        self.config = config = model.contrastive
        self.vision_proj = nn.Linear(vision_width, model.embed_dim)
        self.text_proj = nn.Linear(text_width, model.embed_dim)
        if config.text_projection == "identity":
            if text_width != model.embed_dim:
                raise UserError(
                    f"model.contrastive.text_projection is identity, but model.embed_dim is {model.embed_dim} and "
                    f"the text encoder's width {text_width}; set embed_dim to {text_width}"
                )
            nn.init.eye_(self.text_proj.weight)
            nn.init.zeros_(self.text_proj.bias)
        self.temperature = nn.Parameter(torch.tensor(model.temperature))
        self.register_parameter("bias", nn.Parameter(torch.tensor(config.bias)) if config.loss == "sigmoid" else None)
        self.cached: Iterator[Callable[[EmbeddedPairs, Sequence[Tensor]], Tensor]] | None = None
        """With gradient caching (:mod:`models.core.gradient_cache`), functions that replace the losses of the next forward
        passes. Their arguments are the pairs of a pass and :attr:`scalars`."""

    def embed_pairs(
        self,
        images: Concepts | PackedTexts,
        texts: PackedTexts,
        valid: Tensor,
        group: Tensor,
        same_group: SameGroup,
        hard_negatives: PackedTexts | None = None,
        hard_valid: Tensor | None = None,
    ) -> EmbeddedPairs:
        """Embeds N pairs.

        Args:
            images: N images, videos or regions; for translations, N texts.
            texts: N texts.
            valid, group, same_group, hard_valid: see :class:`EmbeddedPairs`.
            hard_negatives: N * K texts; the K texts of pair n begin at n * K.
        """
        first = self.embed_text(images) if isinstance(images, PackedTexts) else self.embed_image(images)
        hard = None if hard_negatives is None else self.embed_text(hard_negatives).unflatten(0, (len(valid), -1))
        return EmbeddedPairs(first, self.embed_text(texts), valid, group, same_group, hard, hard_valid)

    def embed_image(self, concepts: Concepts) -> Tensor:
        """Normalised embeddings (R, E) of visual concepts (images, videos or regions), in float32 or higher precision."""
        return F.normalize(losses.at_least_float32(self.vision_proj(concepts.mean)), dim=1)

    def embed_text(self, texts: PackedTexts) -> Tensor:
        """Normalised embeddings (N, E) of texts, in float32 or higher precision."""
        if self.config.text == "cls":
            return self._embed(texts.cls)
        return self.embed_padded(texts.padded(), texts.packing.mask)

    def embed_padded(self, states: Tensor, mask: Tensor) -> Tensor:
        """Normalised embeddings (N, E) of texts, from their token states (N, L, D); ``mask`` (N, L) bool, True = token."""
        if self.config.text == "last":
            last = mask.sum(dim=1).clamp(min=1) - 1
            return self._embed(states[torch.arange(len(states), device=states.device), last])
        return self._embed(states[:, 0] if self.config.text == "cls" else masked_mean(states, mask))

    def _embed(self, states: Tensor) -> Tensor:
        return F.normalize(losses.at_least_float32(self.text_proj(states)), dim=1)

    @property
    def scalars(self) -> tuple[nn.Parameter, ...]:
        """The parameters of the loss: the temperature and, with the sigmoid loss, the bias."""
        return (self.temperature,) if self.bias is None else (self.temperature, self.bias)

    def clamp_temperature(self) -> None:
        """Clamps the temperature to its range (0.001 to 0.5 in the authors' code). Call this method before each forward pass."""
        with torch.no_grad():
            self.temperature.clamp_(self.config.min_temperature, MAX_TEMPERATURE)

    def similarity(self, image: Tensor, text: Tensor) -> Tensor:
        """Cosine similarities (R, N), divided by the temperature, between all embeddings ``image`` (R, E) and ``text`` (N, E)."""
        with torch.autocast(image.device.type, enabled=False):
            return image @ text.t() / self.temperature

    def hard_similarity(self, pairs: EmbeddedPairs) -> Tensor:
        """Cosine similarities (N, K) of each image to its hard negatives, divided by the temperature."""
        with torch.autocast(pairs.image.device.type, enabled=False):
            return losses.hard_similarity(pairs, self.temperature)

    def start_loss(self, pairs: EmbeddedPairs) -> Callable[[], Tensor]:
        """Starts computing the contrastive loss (eq. 1, or the sigmoid loss). Each valid pair of this rank is compared with the
        pairs of all ranks, and the losses are summed over this rank's valid pairs.

        The method returns while the embeddings (N, E) of all ranks are still being gathered, so that the caller can start other
        work. The returned function waits for the embeddings and computes the loss. Its gradient is the gradient of the
        single-process loss, or 1/ranks of this gradient, depending on ``config.gradient``.
        """
        if self.cached is not None:
            return partial(next(self.cached), pairs, self.scalars)
        local = pairs
        if self.config.gradient == "released":
            factor = 1 / distributed.world_size()
            local = pairs.with_embeddings([distributed.scale_gradient(each, factor) for each in pairs.embeddings()])
        image, text, valid, group, same_group, *_ = local
        wait_for_embeddings = distributed.start_gather(torch.cat([image, text], dim=1))
        wait_for_groups = distributed.start_gather(torch.stack([valid.long(), group], dim=1))

        def finish() -> Tensor:
            all_images, all_texts = wait_for_embeddings().split(image.shape[1], dim=1)
            all_valid, all_groups = wait_for_groups().unbind(dim=1)
            all_ranks = EmbeddedPairs(all_images, all_texts, all_valid.bool(), all_groups, same_group)
            offset = distributed.rank() * len(valid)
            with torch.autocast(image.device.type, enabled=False):
                if self.bias is not None:
                    return losses.sigmoid_contrastive(local, all_ranks, offset, self.temperature, self.bias)
                return losses.contrastive(local, all_ranks, offset, self.temperature)

        return finish
