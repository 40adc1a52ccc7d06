"""The shared model: vision encoder, text encoder and fusion encoder (section 3)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import cached_property
from typing import Any, Self, cast

import torch
from torch import nn

from models.blocks import BlockStack
from models.flops import ModelCost
from models.fusion import FusionConfig, FusionEncoder
from models.hub_text import HubTextEncoder, build_text_encoder
from models.text import TextConfig
from models.vision import FRAME_POSITIONS, VisionConfig, VisionEncoder
from optim.lora import PARTS, LoraConfig, add_adapters
from utils.config import Config
from utils.errors import UserError


class ModelConfig(Config):
    """The shared model."""

    vision: VisionConfig = VisionConfig()
    text: TextConfig = TextConfig()
    fusion: FusionConfig = FusionConfig()

    @property
    def chunks(self) -> int:
        """Micro-batches of a rank that a loss spans: see :class:`engine.task.TaskModel`."""
        return 1


BESIDE_BLOCKS = (FRAME_POSITIONS, "text.projection.", "decoder.word_head.", "decoder.embeddings.")
"""Begin the names of parameters of a part that are in none of its blocks and begin at random numbers in fine-tuning."""
COMPILATIONS = 64
"""Limit of compilations per function: more than the variants of a step."""


class XVLM(nn.Module):
    """X²-VLM (section 3): the encoders, which all tasks share. Tasks add their heads and ``forward(batch)``."""

    def __init__(self, config: ModelConfig, vocab_size: int | None = None):
        super().__init__()
        self.config = config
        self.vision = VisionEncoder(config.vision)
        self.text = build_text_encoder(config.text, vocab_size, config.fusion.width)
        self.fusion = FusionEncoder(config.fusion, self.text.block_config, self.vision.width)
        self._frozen: dict[str, list[nn.Parameter]] = {}
        """The parameters that freezing each part has kept from training."""

    @cached_property
    def cost(self) -> ModelCost:
        """Coefficients of the FLOPs of a step."""
        return ModelCost.of(self)

    @property
    def chunks(self) -> int:
        """See :class:`engine.task.TaskModel`."""
        return self.config.chunks

    def stacks(self) -> list[BlockStack]:
        """All stacks of blocks: text encoder, fusion encoder and answer decoder, where they have any."""
        return [module for module in self.modules() if isinstance(module, BlockStack)]

    def set_recompute(self, parts: Collection[str]) -> None:
        """Recompute the blocks of these encoders in the backward pass: less memory, more time.

        Only the blocks' inputs and the keys and values of cross-attention memories are kept.

        Args:
            parts: any of "vision", "text", "fusion"; "fusion" includes an answer decoder.

        Raises:
            UserError: if timm's backbone or a Hugging Face encoder does not support it.
        """
        try:
            self.vision.backbone.set_grad_checkpointing("vision" in parts)
        except (AssertionError, AttributeError):
            if "vision" in parts:
                name = self.config.vision.backbone
                raise UserError(
                    f"train.recompute: {name!r} does not support recomputation; leave out `vision`"
                ) from None
        text_modules = list(self.text.modules())
        for stack in self.stacks():
            stack.recompute = ("text" if stack in text_modules else "fusion") in parts
        if isinstance(self.text, HubTextEncoder):
            self.text.set_recompute("text" in parts)

    def set_frozen(self, parts: Collection[str]) -> None:
        """Freeze these encoders, and have the others train again.

        A frozen encoder has no gradients and stays in evaluation mode: its states depend on nothing but its inputs. Gradients
        pass through a frozen fusion to encoders that train. Parameters that no loss of the run trains stay as they are.

        Args:
            parts: any of "vision", "text" (with the word table, also where heads read it) and "fusion" (without an answer
                decoder).
        """
        for part in self._frozen.keys() - set(parts):
            for parameter in self._frozen.pop(part):
                parameter.requires_grad_(True)
        for part in set(parts) - self._frozen.keys():
            self._frozen[part] = [one for one in self.get_submodule(part).parameters() if one.requires_grad]
            for parameter in self._frozen[part]:
                parameter.requires_grad_(False)
                parameter.grad = None
        self.__dict__.pop("cost", None)  # a frozen encoder has fewer FLOPs
        self.train(self.training)

    def add_adapters(self, config: LoraConfig, frozen: Collection[str] = ()) -> None:
        """Give the linear layers in the blocks of some parts low-rank adapters, which train in their place.

        A projection to another width and the positions of frames, which a file of pre-training does not have, train as before;
        so does every part that is no target.

        Args:
            config: names the parts; where it does not, those that the model has are taken.
            frozen: parts of the model that never train, which are not taken.

        Raises:
            UserError: if the model lacks a part that is named, nothing would train there, or the rank is that of a weight.
        """
        lacking = [part for part in config.targets or () if not hasattr(self, part)]
        if lacking:
            has = ", ".join(part for part in PARTS if hasattr(self, part))
            raise UserError(f"optim.lora.targets: {lacking[0]} is no part of this task's model, which has {has}")
        targets = config.targets or [part for part in PARTS if hasattr(self, part) and part not in frozen]
        layers = {part: self._adapted(part, config.layers) for part in targets}
        for part, names in layers.items():
            if not names:
                raise UserError(f"optim.lora.targets: no linear layer of {part} trains in this run; leave it out")
        self._check_rank(config.rank, [name for names in layers.values() for name in names])
        kept = [parameter for name, parameter in self.named_parameters() if name.startswith(BESIDE_BLOCKS)]
        kept = [parameter for parameter in kept if parameter.requires_grad]
        if "vision" in targets:
            self.vision.call_projections()
        add_adapters(
            {part: self.get_submodule(part) for part in targets},
            [name for names in layers.values() for name in names],
            config,
        )
        for parameter in kept:
            parameter.requires_grad_(True)
        self.__dict__.pop("cost", None)  # weights that stay as they are have no gradient

    def _check_rank(self, rank: int, layers: Sequence[str]) -> None:
        """Refuse a rank at which adapters are no smaller than the weights that they stand for."""
        sizes = {name: min(cast(nn.Linear, self.get_submodule(name)).weight.shape) for name in layers}
        widest = max(layers, key=sizes.__getitem__)
        most = sizes[widest]
        if rank >= most:
            raise UserError(
                f"optim.lora.rank is {rank}, but no weight has a rank above {most} ({widest}); lower it, or train the weights"
            )

    def _adapted(self, part: str, layers: str) -> list[str]:
        """The names of the linear layers of ``part`` that train, of its blocks or of their attention alone."""
        return [
            f"{part}.{name}"
            for name, module in self.get_submodule(part).named_modules()
            if isinstance(module, nn.Linear)
            and module.weight.requires_grad
            and not f"{part}.{name}".startswith(BESIDE_BLOCKS)
            and (layers == "all" or any("att" in step for step in name.split(".")))
        ]

    def train(self, mode: bool = True) -> Self:
        """See :meth:`torch.nn.Module.train`; frozen encoders stay in evaluation mode."""
        super().train(mode)
        for part in self._frozen:
            self.get_submodule(part).eval()
        return self

    def compile_encoders(self, **options: Any) -> None:
        """Compile the backbone and every stack of blocks by ``torch.compile``; parameters keep their names.

        The code between them depends on numbers that only the host knows. Torch runs a function uncompiled after 8 compilations.
        The method raises this limit, since the fusion has a variant for every stream and set of its losses.
        """
        limits = torch._dynamo.config
        limits.recompile_limit = max(limits.recompile_limit, COMPILATIONS)
        backbone = self.vision.backbone  # the encoder calls its forward_features alone
        backbone.forward_features = torch.compile(backbone.forward_features, **options)
        hub_modules = [self.text.model] if isinstance(self.text, HubTextEncoder) else []
        for module in (*self.stacks(), *hub_modules):
            # Numbers of tokens change from step to step. Compiled for any number at once, all ranks compile in the same step.
            module.compile(dynamic=True, **options)

    def copied_from(self) -> dict[str, str]:
        """Sources of the parameters that start as copies where a pre-training checkpoint lacks them: name -> name in the
        pre-training model."""
        return {}
