"""The shared model: the three encoders, and the contrastive head that pre-training and retrieval share (section 3)."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import cached_property
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from models import losses
from models.encoded import Concepts, Encoded
from models.flops import ModelCost
from models.fusion import FusionConfig, FusionEncoder
from models.text import TextConfig, build_text_encoder
from models.vision import VisionConfig, VisionEncoder
from utils import distributed
from utils.config import Config
from utils.errors import UserError


class ContrastiveConfig(Config):
    """How the contrastive loss sees the other rows of the global batch."""

    gradient: Literal["exact", "released"] = Field(
        "exact",
        description="exact: that of the single-process loss. released: the embeddings receive 1/ranks of it under DDP, "
        "since the released gather lets only the local slice carry gradient; the temperature's is exact",
    )


class ModelConfig(Config):
    """The shared model."""

    vision: VisionConfig = VisionConfig()
    text: TextConfig = TextConfig()
    fusion: FusionConfig = FusionConfig()


class AligningConfig(ModelConfig):
    """Also the joint space of images and texts, which pre-training and retrieval have."""

    embed_dim: int = Field(256, ge=1, description="width of the contrastive embeddings")
    temperature: float = Field(0.07, gt=0, description="initial value; learned, kept within 0.001 .. 0.5")
    contrastive: ContrastiveConfig = ContrastiveConfig()


TEMPERATURE_RANGE = (0.001, 0.5)

FORMS = 64
"""Compilations of one function that are allowed: more than there are forms of a step."""


class XVLM(nn.Module):
    """X²-VLM (section 3): what every task shares. Tasks add their heads and their ``forward(batch)``."""

    def __init__(self, config: ModelConfig, vocab_size: int | None = None):
        super().__init__()
        self.config = config
        self.vision = VisionEncoder(config.vision)
        self.text = build_text_encoder(config.text, vocab_size, config.fusion.width)
        self.fusion = FusionEncoder(config.fusion, self.text.layer_config, self.vision.width)

    @cached_property
    def cost(self) -> ModelCost:
        """What the FLOPs of a step are counted with."""
        return ModelCost.of(self)

    def recompute(self, parts: Collection[str]) -> None:
        """Keep only the inputs of the layers of these encoders (vision, text, fusion), and the keys and values of what the fusion
        looks at, for the backward pass, which computes the rest anew: less memory, more time.

        Raises:
            UserError: if timm's backbone cannot.
        """
        try:
            self.vision.backbone.set_grad_checkpointing("vision" in parts)
        except (AssertionError, AttributeError):
            if "vision" in parts:
                name = self.config.vision.backbone
                raise UserError(f"train.recompute: {name!r} cannot recompute its blocks; leave out `vision`") from None
        self.text.recompute("text" in parts)
        self.fusion.recompute = "fusion" in parts

    def compile_encoders(self, **options: Any) -> None:
        """Compile the blocks of the backbone and the layers of text and fusion encoder by ``torch.compile``; names of parameters
        stay. What lies between them depends on numbers that only the host knows.

        Torch's limit of 8 compilations of a function, after which it runs uncompiled, is raised: the fusion has a form for every
        set of streams in a step and of their losses.
        """
        limits = torch._dynamo.config
        limits.recompile_limit = max(limits.recompile_limit, FORMS)
        backbone = self.vision.backbone  # whose forward_features alone is called
        backbone.forward_features = torch.compile(backbone.forward_features, **options)
        # Numbers of tokens change from step to step; compiled for any from the start, all ranks compile in the same step.
        self.text.layers.compile(dynamic=True, **options)
        self.fusion.run = torch.compile(self.fusion.run, dynamic=True, **options)  # type: ignore[method-assign]

    def copied_from(self) -> dict[str, str]:
        """Which parameters start as copies of others, by their names in the pre-training model, where a checkpoint is of
        pre-training and has none of them."""
        return {}


class ContrastiveHead(nn.Module):
    """Projections to the joint space and the temperature (eq. 1)."""

    def __init__(self, vision_width: int, text_width: int, config: AligningConfig):
        super().__init__()
        self.config = config.contrastive
        self.vision_proj = nn.Linear(vision_width, config.embed_dim)
        self.text_proj = nn.Linear(text_width, config.embed_dim)
        self.temperature = nn.Parameter(torch.tensor(config.temperature))

    def embed_image(self, concepts: Concepts) -> Tensor:
        """Normalised embeddings of visual concepts, (R, E) float32."""
        return F.normalize(self.vision_proj(concepts.concept).float(), dim=1)

    def embed_text(self, text: Encoded) -> Tensor:
        """Normalised embeddings of texts, (N, E) float32."""
        return F.normalize(self.text_proj(text.cls).float(), dim=1)

    def clamp_temperature(self) -> None:
        """Keep the temperature in its range, before each step (as released)."""
        with torch.no_grad():
            self.temperature.clamp_(*TEMPERATURE_RANGE)

    def similarity(self, image: Tensor, text: Tensor) -> Tensor:
        """Cosine similarity over temperature of all pairs, (R, N) float32."""
        with torch.autocast(image.device.type, enabled=False):
            return image @ text.t() / self.temperature

    def start_loss(
        self, image: Tensor, text: Tensor, valid: Tensor, key: Tensor, same_key: losses.SameKey
    ) -> Callable[[], Tensor]:
        """Eq. 1 over the global batch, summed over this rank's valid rows; each rank computes only its own rows.

        The rows of all ranks are on their way when this returns; what is returned waits for them. The gradient is that of the
        single-process loss, or 1/ranks of it (``config.gradient``).
        """
        if self.config.gradient == "released":
            share = 1 / distributed.world_size()
            image, text = (distributed.scale_gradient(part, share) for part in (image, text))
        own = losses.ContrastiveRows(image, text, valid, key)
        gathered = distributed.start_gather(torch.cat([image, text], dim=1))
        marked = distributed.start_gather(torch.stack([valid.long(), key], dim=1))

        def finish() -> Tensor:
            embeds, marks, width = gathered(), marked(), own.image.shape[1]
            everyone = losses.ContrastiveRows(embeds[:, :width], embeds[:, width:], marks[:, 0].bool(), marks[:, 1])
            with torch.autocast(embeds.device.type, enabled=False):
                offset = distributed.rank() * len(valid)
                return losses.contrastive(own, everyone, offset, self.temperature, same_key)

        return finish
