"""The fusion encoder: texts attend to images, regions, videos or other texts through cross-attention (section 3.3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor

from models.blocks import BlockConfig, BlockStack, QueryPositions, Sequences, attention_mask, heads_error, linear_dtype
from models.memory import Attended, CrossMemory
from models.packing import PackedTexts
from models.vision import Concepts
from utils.config import Config
from utils.errors import UserError


class FusionConfig(Config):
    """Sizes of the fusion encoder. Those left out are the text encoder's; the others stay when the text encoder is replaced."""

    layers: int = Field(6, ge=1)
    width: int | None = Field(None, ge=1, description="text states of another width are projected to it")
    heads: int | None = Field(None, ge=1)
    intermediate: int | None = Field(None, ge=1)
    eps: float | None = Field(None, gt=0)
    drop_path: float = Field(0.0, ge=0, lt=1, description="stochastic depth, rising linearly from 0; replaces dropout")

    def block(self, text: BlockConfig) -> BlockConfig:
        """Sizes of a block, beside a text encoder whose blocks have the sizes ``text``.

        Raises:
            UserError: if its heads do not divide its width.
        """
        own = {"width": self.width, "heads": self.heads, "intermediate": self.intermediate, "eps": self.eps}
        given = {name: value for name, value in own.items() if value is not None}
        block = text.model_copy(update={**given, "drop_path": self.drop_path})
        error = heads_error(block.width, block.heads)
        if error:
            raise UserError(
                f"model.fusion: {error} (sizes left out are the text encoder's; set both, and intermediate)"
            )
        return block


@dataclass(frozen=True)
class FusionPass:
    """N texts with the memory that they attend to.

    ``memory``: R = N / S rows, of which text n attends to row n // S; None: the cross-attention is skipped, as for texts that
    have no image. ``wanted``: the tokens whose fused states are wanted; None: all.
    """

    texts: PackedTexts
    memory: CrossMemory | None
    wanted: QueryPositions | None = None

    @staticmethod
    def cls(texts: PackedTexts, memory: CrossMemory | None) -> FusionPass:
        """A pass of which only [CLS] is wanted."""
        return FusionPass(texts, memory, QueryPositions.cls(texts.packing.count, texts.states.device))


class FusionEncoder(BlockStack):
    """Blocks whose cross-attention sees visual concepts."""

    def __init__(self, config: FusionConfig, text: BlockConfig, vision_width: int):
        """``text``: the sizes of the text encoder's blocks."""
        super().__init__(config.layers, config.block(text), vision_width)

    def fuse(self, passes: Sequence[FusionPass]) -> list[Tensor]:
        """Fuse the texts of several passes in one call: all of them attend to something, or none does.

        Returns:
            For each pass the fused states (Q, D) of its wanted tokens, packed: of [CLS], one state per text.
        """
        texts = PackedTexts.concat([each.texts for each in passes])
        wanted = [each.wanted for each in passes if each.wanted is not None]
        assert len(wanted) in (0, len(passes)), "passes that want all states, and others that do not"
        queries = QueryPositions.concat(wanted) if wanted else None
        fused = self(texts.states, Sequences.of(texts.packing, texts.states, queries), _attended(passes))
        return list(fused.split([(each.wanted or each.texts).packing.tokens for each in passes]))

    def concept_memory(self, concepts: Concepts) -> CrossMemory:
        """The memory of visual concepts: one row per concept, its concept token first, then the patches of its image.

        The patches of an image are projected once, however many concepts share them.
        """
        if concepts.patch_mask is None or concepts.image_index is None:
            return self.memory(concepts.tokens())
        images, patches, _ = concepts.patches.shape
        count = len(concepts.concept)
        # All states once, patches and then concept tokens; each row of the memory gathers its own of them.
        states = torch.cat([concepts.patches.flatten(0, 1), concepts.concept])
        of_image = concepts.image_index.unsqueeze(1) * patches + torch.arange(patches, device=states.device)
        of_concept = images * patches + torch.arange(count, device=states.device).unsqueeze(1)
        own = torch.cat([of_concept, of_image], dim=1).flatten()
        layers = tuple(
            (
                keys.index_select(0, own).view(count, 1 + patches, -1),
                values.index_select(0, own).view(count, 1 + patches, -1),
            )
            for keys, values in self.project(states)
        )
        always = concepts.patch_mask.new_ones(len(concepts.patch_mask), 1)
        mask = torch.cat([always, concepts.patch_mask], dim=1)
        return CrossMemory(layers, attention_mask(mask, linear_dtype(concepts.patches)))


def _attended(passes: Sequence[FusionPass]) -> list[Attended]:
    """The memory of each pass; neighbouring passes over the same one share its keys in one call of attention."""
    attended: list[Attended] = []
    for each in passes:
        texts = each.texts.packing.count
        assert (each.memory is None) == (passes[0].memory is None), "passes with a memory, and others without"
        last = attended[-1] if attended else None
        if last is not None and last.memory is each.memory and last.texts == texts * last.passes:
            attended[-1] = Attended(last.memory, last.texts + texts, last.passes + 1)
        elif each.memory is not None:
            attended.append(Attended(each.memory, texts))
    return attended
