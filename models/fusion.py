"""The fusion encoder: texts attend to images, regions, videos or other texts through cross-attention (section 3.3)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from models.blocks import (
    MOST_BLOCKS,
    MOST_HEADS,
    MOST_WIDTH,
    BlockConfig,
    BlockStack,
    QueryPositions,
    TokenLayout,
    attention_mask,
    heads_error,
    linear_dtype,
)
from models.memory import CrossMemory, MemoryGroup
from models.packing import PackedTexts
from models.vision import Concepts
from utils.config import Config
from utils.errors import UserError


class FusionConfig(Config):
    """Sizes of the fusion encoder. Those left out are the text encoder's; the others stay when the text encoder is replaced."""

    layers: int = Field(6, ge=1, le=MOST_BLOCKS, description="number of blocks")
    width: int | None = Field(
        None,
        ge=1,
        le=MOST_WIDTH,
        description="width of the states; text states of another width are projected to it; null: the text encoder's",
    )
    heads: int | None = Field(None, ge=1, le=MOST_HEADS, description="attention heads; null: the text encoder's")
    intermediate: int | None = Field(
        None, ge=1, le=MOST_WIDTH, description="width inside the feed-forward block; null: the text encoder's"
    )
    eps: float | None = Field(None, gt=0, description="epsilon of every LayerNorm; null: the text encoder's")
    drop_path: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="drop rate of the last block, rising linearly from 0 in the first; replaces the dropout of residuals",
    )

    def block(self, text: BlockConfig) -> BlockConfig:
        """Sizes of a block, beside a text encoder whose blocks have the sizes ``text``.

        Raises:
            UserError: if its heads do not divide its width.
        """
        sizes = {"width": self.width, "heads": self.heads, "intermediate": self.intermediate, "eps": self.eps}
        in_config = {name: size for name, size in sizes.items() if size is not None}
        block = text.model_copy(update={**in_config, "drop_path": self.drop_path})
        error = heads_error(block.width, block.heads)
        if error:
            raise UserError(
                f"model.fusion: {error} (sizes left out are the text encoder's; set both, and intermediate)"
            )
        return block


@dataclass(frozen=True)
class FusionPass:
    """N texts with the memory that they attend to.

    ``memory``: R rows, each for S = N / R texts: text n attends to row n // S; None: the cross-attention is skipped, as for
    texts that have no image. ``queries``: the tokens whose fused states are wanted; None: all.
    """

    texts: PackedTexts
    memory: CrossMemory | None
    queries: QueryPositions | None = None

    @staticmethod
    def cls(texts: PackedTexts, memory: CrossMemory | None) -> FusionPass:
        """A pass that gives the fused state of [CLS] alone."""
        return FusionPass(texts, memory, QueryPositions.cls(texts.packing.count, texts.states.device))


class FusionEncoder(BlockStack):
    """Blocks whose cross-attention sees visual concepts, or other texts."""

    def __init__(self, config: FusionConfig, text: BlockConfig, vision_width: int):
        """``text``: the sizes of the text encoder's blocks."""
        super().__init__(config.layers, config.block(text), vision_width)

    def fuse(self, passes: Sequence[FusionPass]) -> list[Tensor]:
        """Fuse the texts of several passes in one call: all of them attend to something, or none does.

        Returns:
            For each pass the fused states (Q, D) of its query positions, packed: of [CLS], one state per text.
        """
        texts = PackedTexts.concat([fusion_pass.texts for fusion_pass in passes])
        queries = [fusion_pass.queries for fusion_pass in passes if fusion_pass.queries is not None]
        assert len(queries) in (0, len(passes)), "passes with query positions, and others without"
        positions = QueryPositions.concat(queries) if queries else None
        fused = self(
            texts.states, TokenLayout.of(texts.packing, linear_dtype(texts.states), positions), _memory_groups(passes)
        )
        computed = [one.texts if one.queries is None else one.queries for one in passes]
        return list(fused.split([part.packing.tokens for part in computed]))

    def concept_memory(self, concepts: Concepts) -> CrossMemory:
        """The memory of whole images or videos, a row each: its mean patch, then its patches; of regions, as in
        :meth:`region_memories`."""
        if concepts.patch_mask is None:
            return self.memory(concepts.tokens())
        return self.region_memories(concepts, Concepts.whole(concepts.patches))[0]

    def region_memories(self, regions: Concepts, images: Concepts) -> tuple[CrossMemory, CrossMemory]:
        """The memory of R regions, and for each of them that of its whole image.

        Both have the same keys and values, of the region's mean patch, the image's, and all patches, which are projected once
        per image and then copied, since each row begins with its own mean. A mask hides the image's mean and the patches outside
        the region in the one, and the region's mean in the other.
        """
        assert regions.patch_mask is not None and regions.image_index is not None
        patches, index = regions.patches, regions.image_index
        (image_count, length, _), region_count = patches.shape, len(regions.mean)
        # Project every state once: all patches, the mean of each image, the mean of each region.
        keys_values = self.project(torch.cat([patches.flatten(0, 1), images.mean, regions.mean]))
        # A memory row gathers its states: the region's mean, its image's mean, its image's patches.
        region_state = image_count * (length + 1) + torch.arange(region_count, device=index.device)
        image_state = image_count * length + index
        patch_states = index.unsqueeze(1) * length + torch.arange(length, device=index.device)
        gathered = torch.cat([region_state.unsqueeze(1), image_state.unsqueeze(1), patch_states], dim=1)
        layers = tuple(
            (
                keys.index_select(0, gathered.flatten()).view(*gathered.shape, -1),
                values.index_select(0, gathered.flatten()).view(*gathered.shape, -1),
            )
            for keys, values in keys_values
        )
        see_region = F.pad(F.pad(regions.patch_mask, (1, 0), value=False), (1, 0), value=True)
        see_image = F.pad(torch.ones_like(see_region[:, 1:]), (1, 0), value=False)
        dtype = linear_dtype(patches)
        region_memory = CrossMemory(layers, attention_mask(see_region, dtype))
        return region_memory, CrossMemory(layers, attention_mask(see_image, dtype))


class FusionQueue:
    """Texts that wait to be fused, so that the texts of several losses are fused in one call.

    :meth:`cls` and :meth:`at_positions` return a function that gives the fused states once the queue has run. The order of the
    texts does not change the results. It changes the speed: texts that attend to the same keys share them in attention only if
    they are neighbours.
    """

    def __init__(self, fusion: FusionEncoder):
        self.fusion = fusion
        self._passes: list[FusionPass] = []
        self._fused: list[Tensor] | None = None

    def cls(self, texts: PackedTexts, memory: CrossMemory | None) -> Callable[[], Tensor]:
        """Queue texts of which the fused [CLS] states (N, D) are needed; see :class:`FusionPass`."""
        return self._add(FusionPass.cls(texts, memory))

    def at_positions(
        self, texts: PackedTexts, memory: CrossMemory | None, positions: QueryPositions
    ) -> Callable[[], Tensor]:
        """Queue texts of which the fused states (Q, D) at some positions are needed; see :class:`FusionPass`."""
        return self._add(FusionPass(texts, memory, positions))

    def run(self) -> None:
        """Fuse all queued texts."""
        assert self._fused is None, "the queue has already run"
        self._fused = self.fusion.fuse(self._passes) if self._passes else []

    def _add(self, fusion_pass: FusionPass) -> Callable[[], Tensor]:
        number = len(self._passes)
        self._passes.append(fusion_pass)

        def fused() -> Tensor:
            assert self._fused is not None, "the queue has not run yet"
            return self._fused[number]

        return fused


def _memory_groups(passes: Sequence[FusionPass]) -> list[MemoryGroup]:
    """The memory of each pass; neighbouring passes over the same keys share them in one call of attention.

    Keys are the same where they are the same tensors and the same selected rows. So the order of passes decides how many calls
    there are, and nothing else.
    """
    attended: list[MemoryGroup] = []
    for fusion_pass in passes:
        memory, texts = fusion_pass.memory, fusion_pass.texts.packing.count
        assert (memory is None) == (passes[0].memory is None), "passes with a memory, and others without"
        if memory is None:
            continue
        last = attended[-1] if attended else None
        # The same keys, and as many texts as in each of the passes before.
        if last is not None and memory.shares_keys(last.memories[0]) and last.text_count == texts * len(last.memories):
            attended[-1] = MemoryGroup((*last.memories, memory), last.text_count + texts)
        else:
            attended.append(MemoryGroup((memory,), texts))
    return attended
