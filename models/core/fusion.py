"""The fusion encoder: texts attend to images, regions, videos or other texts through cross-attention (section 3.3 of the
paper)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from models.config import BlockConfig, FusionConfig
from models.core.blocks import BlockStack, QueryPositions, attention_bias, linear_dtype
from models.core.keys_values import KeysValues
from models.core.packing import PackedTexts, Packing, select_rows
from models.core.vision import Concepts

FusedStates = Callable[[], Tensor]
"""Returns the fused states of a queued pass, once :meth:`FusionQueue.run` has been called."""


class FusionEncoder(BlockStack):
    """Transformer blocks whose cross-attention reads visual concepts or other texts."""

    def __init__(self, config: FusionConfig, text: BlockConfig, vision_width: int):
        """``text``: the sizes of the text encoder's blocks."""
        super().__init__(config.layers, config.block(text), vision_width)

    def cls(self, texts: PackedTexts, keys_values: KeysValues | None) -> Tensor:
        """The fused states (N, D) of [CLS]. For the arguments, see :class:`FusionQueue`."""
        queue = FusionQueue(self)
        fused = queue.add_cls(texts, keys_values)
        queue.run()
        return fused()

    def tokens(self, texts: PackedTexts, keys_values: KeysValues | None) -> PackedTexts:
        """The fused states of all tokens. For the arguments, see :class:`FusionQueue`."""
        queue = FusionQueue(self)
        fused = queue.add_tokens(texts, keys_values)
        queue.run()
        return PackedTexts(fused(), texts.packing)

    def project_concepts(self, concepts: Concepts) -> KeysValues:
        """Keys and values of whole images or videos, one row for each: first the mean of the patches, then the patches."""
        assert concepts.patch_mask is None, "regions are projected by project_regions"
        return self.project(concepts.states())

    def project_regions(self, regions: Concepts, images: Concepts) -> tuple[KeysValues, KeysValues]:
        """Keys and values of R regions, and of the whole image of each region.

        Both results contain the same tensors and differ only in their biases. Each state is projected once and then copied into
        the rows that need it. In contrast to :meth:`Concepts.states`, a row has two means, so that it serves both. The row of a
        region that consists of the patches 2 and 3 of an image with P = 4 patches, and what a text about the region and a text
        about the whole image attend to::

            states of the row      mean of     mean of     patch 1  patch 2  patch 3  patch 4
                                   the region  the image
            bias for the region    0           -inf        -inf     0        0        -inf
            bias for the image     -inf        0           0        0        0        0
        """
        assert regions.patch_mask is not None and regions.image_index is not None
        patches, image_index = regions.patches, regions.image_index
        (image_count, length, _), region_count = patches.shape, len(regions.mean)
        # Project every state once: all patches, the mean of each image, the mean of each region, (I * P + I + R, D).
        projected = self.project_layers(torch.cat([patches.flatten(0, 1), images.mean, regions.mean]))
        first_image_mean, first_region_mean = image_count * length, image_count * (length + 1)
        # A row gathers its states, (R, 2 + P): the region's mean, its image's mean, its image's patches.
        region_mean = first_region_mean + torch.arange(region_count, device=image_index.device)
        image_mean = first_image_mean + image_index
        patch_states = image_index.unsqueeze(1) * length + torch.arange(length, device=image_index.device)
        gathered = torch.cat([region_mean.unsqueeze(1), image_mean.unsqueeze(1), patch_states], dim=1)
        layers = tuple((select_rows(keys, gathered), select_rows(values, gathered)) for keys, values in projected)
        see_region = F.pad(F.pad(regions.patch_mask, (1, 0), value=False), (1, 0), value=True)
        see_image = F.pad(torch.ones_like(see_region[:, 1:]), (1, 0), value=False)
        dtype = linear_dtype(patches)
        return (
            KeysValues(layers, attention_bias(see_region, dtype)),
            KeysValues(layers, attention_bias(see_image, dtype)),
        )


@dataclass(frozen=True)
class FusionPass:
    """Texts to be fused.

    Attributes:
        texts: N texts.
        keys_values: the keys and values that the texts attend to; None if cross-attention is skipped.
        queries: the tokens whose fused states are needed; None if all tokens are needed.
    """

    texts: PackedTexts
    keys_values: KeysValues | None
    queries: QueryPositions | None = None

    @property
    def fused_packing(self) -> Packing:
        """The packing of the fused states."""
        return self.texts.packing if self.queries is None else self.queries.packing


class FusionQueue:
    """Collects texts to be fused, so that the texts of several losses are fused in one call.

    :meth:`add_cls`, :meth:`add_tokens` and :meth:`add_positions` each queue a pass of N texts and return a function, which
    returns the fused states once :meth:`run` has been called. ``keys_values`` has B rows, each for S = N / B texts: text n
    attends to row ``n // S``. S must be equal in all passes of a queue. If ``keys_values`` is None, cross-attention is skipped,
    as for texts without an image; ``keys_values`` must then be None in every pass.

    Without dropout, the order of the passes does not change the results, but it does change the speed: passes that attend to the
    same keys and values share one attention call only if they are neighbours in the queue.
    """

    def __init__(self, fusion: FusionEncoder):
        self.fusion = fusion
        self._passes: list[FusionPass] = []
        self._fused: Sequence[Tensor] | None = None

    def add_cls(self, texts: PackedTexts, keys_values: KeysValues | None) -> FusedStates:
        """Queues texts whose fused [CLS] states (N, D) are needed."""
        return self.add_positions(texts, keys_values, QueryPositions.cls(texts.packing.count, texts.states.device))

    def add_positions(
        self, texts: PackedTexts, keys_values: KeysValues | None, positions: QueryPositions
    ) -> FusedStates:
        """Queues texts whose fused states (Q, D) at some positions are needed."""
        return self._queue(FusionPass(texts, keys_values, positions))

    def add_tokens(self, texts: PackedTexts, keys_values: KeysValues | None) -> FusedStates:
        """Queues texts for which the fused states (T, D) of all tokens are needed. Such passes cannot be mixed with other passes
        in a queue."""
        return self._queue(FusionPass(texts, keys_values))

    def run(self) -> None:
        """Fuses all queued texts."""
        assert self._fused is None, "the queue has already run"
        if not self._passes:
            return
        assert len({each.keys_values is None for each in self._passes}) == 1, (
            "some passes have keys and values, others do not"
        )
        assert len({each.queries is None for each in self._passes}) == 1, (
            "some passes have query positions, others do not"
        )
        texts_per_row = {
            divmod(each.texts.packing.count, len(each.keys_values))
            for each in self._passes
            if each.keys_values is not None
        }
        assert len(texts_per_row) <= 1 and not any(rest for _, rest in texts_per_row), (
            f"all passes need the same number of texts per row of keys and values, not {texts_per_row}"
        )
        texts = PackedTexts.concat([each.texts for each in self._passes])
        queries = [each.queries for each in self._passes if each.queries is not None]
        fused = self.fusion(
            texts.states,
            texts.packing,
            attention_bias(texts.packing.mask, linear_dtype(texts.states)),
            [each.keys_values for each in self._passes if each.keys_values is not None],
            QueryPositions.concat(queries) if queries else None,
        )
        self._fused = fused.split([each.fused_packing.token_count for each in self._passes])

    def _queue(self, fusion_pass: FusionPass) -> FusedStates:
        index = len(self._passes)
        self._passes.append(fusion_pass)

        def fused() -> Tensor:
            assert self._fused is not None, "call run() first"
            return self._fused[index]

        return fused
