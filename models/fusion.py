"""The fusion encoder: texts attend to images, regions, videos or other texts through cross-attention (section 3.3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

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
    """Blocks whose cross-attention sees visual concepts, or other texts."""

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
        """The memory of whole images or videos, one row each: its concept token, then its patches; of regions, as in
        :meth:`region_memories`."""
        if concepts.patch_mask is None:
            return self.memory(concepts.tokens())
        return self.region_memories(concepts, Concepts.whole(concepts.patches))[0]

    def region_memories(self, regions: Concepts, images: Concepts) -> tuple[CrossMemory, CrossMemory]:
        """The memory of R regions, and for each of them that of its whole image.

        Both have the same keys and values, of the region's concept token, the image's, and the patches, which are projected once
        per image; a mask hides the image's token and other patches from the one, and the region's token from the other.
        """
        assert regions.patch_mask is not None and regions.image_index is not None
        patches, index = regions.patches, regions.image_index
        (images_count, length, _), count = patches.shape, len(regions.cls)
        # All states once: patches, then concept tokens of images, then of regions. Each row gathers its own of them.
        states = torch.cat([patches.flatten(0, 1), images.cls, regions.cls])
        of_image = images_count * length + index
        of_region = images_count * (length + 1) + torch.arange(count, device=index.device)
        of_patches = index.unsqueeze(1) * length + torch.arange(length, device=index.device)
        rows = torch.cat([of_region.unsqueeze(1), of_image.unsqueeze(1), of_patches], dim=1)
        layers = tuple(
            (
                keys.index_select(0, rows.flatten()).view(*rows.shape, -1),
                values.index_select(0, rows.flatten()).view(*rows.shape, -1),
            )
            for keys, values in self.project(states)
        )
        see_region = F.pad(F.pad(regions.patch_mask, (1, 0), value=False), (1, 0), value=True)
        see_image = F.pad(torch.ones_like(see_region[:, 1:]), (1, 0), value=False)
        dtype = linear_dtype(patches)
        return CrossMemory(layers, attention_mask(see_region, dtype)), CrossMemory(
            layers, attention_mask(see_image, dtype)
        )


def _attended(passes: Sequence[FusionPass]) -> list[Attended]:
    """The memory of each pass; neighbouring passes over the same keys share them in one call of attention."""
    attended: list[Attended] = []
    for each in passes:
        memory, texts = each.memory, each.texts.packing.count
        assert (memory is None) == (passes[0].memory is None), "passes with a memory, and others without"
        if memory is None:
            continue
        last = attended[-1] if attended else None
        # The same keys, and as many texts as in each of the passes before.
        if last is not None and memory.shares_keys(last.memories[0]) and last.text_count == texts * len(last.memories):
            attended[-1] = Attended((*last.memories, memory), last.text_count + texts)
        else:
            attended.append(Attended((memory,), texts))
    return attended
