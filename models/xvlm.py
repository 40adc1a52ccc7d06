"""The shared model: vision encoder, text encoder and fusion encoder (section 3)."""

from __future__ import annotations

from collections.abc import Collection
from functools import cached_property
from typing import Any

import torch
from torch import nn

from models.blocks import BlockStack
from models.flops import ModelCost
from models.fusion import FusionConfig, FusionEncoder
from models.hub_text import HubTextEncoder, build_text_encoder
from models.text import TextConfig
from models.vision import VisionConfig, VisionEncoder
from utils.config import Config
from utils.errors import UserError


class ModelConfig(Config):
    """The shared model."""

    vision: VisionConfig = VisionConfig()
    text: TextConfig = TextConfig()
    fusion: FusionConfig = FusionConfig()


COMPILATIONS = 64
"""Compilations of one function that are allowed: more than there are forms of a step."""


class XVLM(nn.Module):
    """X²-VLM (section 3): what every task shares. Tasks add their heads and their ``forward(batch)``."""

    def __init__(self, config: ModelConfig, vocab_size: int | None = None):
        super().__init__()
        self.config = config
        self.vision = VisionEncoder(config.vision)
        self.text = build_text_encoder(config.text, vocab_size, config.fusion.width)
        self.fusion = FusionEncoder(config.fusion, self.text.block_config, self.vision.width)

    @cached_property
    def cost(self) -> ModelCost:
        """Coefficients of the FLOPs of a step."""
        return ModelCost.of(self)

    def stacks(self) -> list[BlockStack]:
        """Every stack of blocks: of the text encoder, the fusion encoder, and an answer decoder."""
        return [module for module in self.modules() if isinstance(module, BlockStack)]

    def set_recompute(self, parts: Collection[str]) -> None:
        """Keep only the inputs of the blocks of these encoders, and the keys and values of cross-attention memories; the backward
        pass computes the rest anew: less memory, more time.

        Args:
            parts: of "vision", "text", "fusion"; an answer decoder goes with the fusion.

        Raises:
            UserError: if timm's backbone or a Hugging Face encoder cannot.
        """
        try:
            self.vision.backbone.set_grad_checkpointing("vision" in parts)
        except (AssertionError, AttributeError):
            if "vision" in parts:
                name = self.config.vision.backbone
                raise UserError(f"train.recompute: {name!r} cannot recompute its blocks; leave out `vision`") from None
        of_text = list(self.text.modules())
        for stack in self.stacks():
            stack.recompute = ("text" if stack in of_text else "fusion") in parts
        if isinstance(self.text, HubTextEncoder):
            self.text.set_recompute("text" in parts)

    def compile_encoders(self, **options: Any) -> None:
        """Compile the backbone and every stack of blocks by ``torch.compile``; names of parameters stay. The code between
        them depends on numbers that only the host knows.

        Torch's limit of 8 compilations of a function, after which it runs uncompiled, is raised: the fusion has a form for every
        stream and set of its losses.
        """
        limits = torch._dynamo.config
        limits.recompile_limit = max(limits.recompile_limit, COMPILATIONS)
        backbone = self.vision.backbone  # whose forward_features alone is called
        backbone.forward_features = torch.compile(backbone.forward_features, **options)
        of_hub = [self.text.model] if isinstance(self.text, HubTextEncoder) else []
        for module in (*self.stacks(), *of_hub):
            # Numbers of tokens change from step to step; compiled for any from the start, all ranks compile in the same step.
            module.compile(dynamic=True, **options)

    def copied_from(self) -> dict[str, str]:
        """Parameters that start as copies of others where a checkpoint of pre-training lacks them: name -> name in the
        pre-training model."""
        return {}
