"""The fusion encoder: texts attend to images, regions, videos or other texts through cross-attention (section 3.3 of the
paper)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from models.config import BlockConfig, FusionConfig
from models.core.blocks import BlockStack, QueryPositions, attention_bias, linear_dtype
from models.core.keys_values import KeysValues
from models.core.packing import PackedTexts, Packing, select_rows
from models.core.vision import Concepts


@dataclass(frozen=True)
class FusionPass:
    """N texts to be fused.

    Attributes:
        texts: the texts.
        keys_values: B rows of keys and values, each for S = N / B texts: text n attends to row ``n // S``. If None,
            cross-attention is skipped, as for texts without an image.
        queries: the tokens whose fused states are needed; None if all tokens are needed.
    """

    texts: PackedTexts
    keys_values: KeysValues | None
    queries: QueryPositions | None = None

    @staticmethod
    def cls(texts: PackedTexts, keys_values: KeysValues | None) -> FusionPass:
        """A pass that only needs the fused states of [CLS]."""
        return FusionPass(texts, keys_values, QueryPositions.cls(texts.packing.count, texts.states.device))

    @property
    def fused_packing(self) -> Packing:
        """The packing of the fused states."""
        return self.texts.packing if self.queries is None else self.queries.packing


class FusionEncoder(BlockStack):
    """Transformer blocks whose cross-attention reads visual concepts or other texts."""

    def __init__(self, config: FusionConfig, text: BlockConfig, vision_width: int):
        """``text``: the sizes of the text encoder's blocks."""
        super().__init__(config.layers, config.block(text), vision_width)

    def fuse(self, passes: Sequence[FusionPass]) -> list[Tensor]:
        """Fuses the texts of several passes in one call.

        All passes must have the same number S of texts per row of keys and values. Either all or none of them may have keys and
        values, and the same holds for query positions.

        Without dropout, the order of the passes does not change the results, but it does change the speed: passes that attend to
        the same keys and values share one call of attention only if they are neighbours, because a call takes a slice of the
        concatenated texts.

        Returns:
            For each pass, the fused states (Q, D) of its query positions, or (T, D) of all its tokens.
        """
        assert len({each.keys_values is None for each in passes}) == 1, (
            "some passes have keys and values, others do not"
        )
        assert len({each.queries is None for each in passes}) == 1, "some passes have query positions, others do not"
        texts_and_rows = [
            (each.texts.packing.count, len(each.keys_values)) for each in passes if each.keys_values is not None
        ]
        texts_per_row = {texts / rows for texts, rows in texts_and_rows}
        assert len(texts_per_row) <= 1 and all(each.is_integer() for each in texts_per_row), (
            f"all passes need the same number of texts per row of keys and values; these have {texts_and_rows} texts and rows"
        )
        texts = PackedTexts.concat([each.texts for each in passes])
        queries = [each.queries for each in passes if each.queries is not None]
        fused: Tensor = self(
            texts.states,
            texts.packing,
            attention_bias(texts.packing.mask, linear_dtype(texts.states)),
            [each.keys_values for each in passes if each.keys_values is not None],
            QueryPositions.concat(queries) if queries else None,
        )
        return list(fused.split([each.fused_packing.token_count for each in passes]))

    def cls(self, texts: PackedTexts, keys_values: KeysValues | None) -> Tensor:
        """The fused states (N, D) of [CLS]. For the arguments, see :class:`FusionPass`."""
        return self.fuse([FusionPass.cls(texts, keys_values)])[0]

    def tokens(self, texts: PackedTexts, keys_values: KeysValues | None) -> PackedTexts:
        """The fused states of all tokens. For the arguments, see :class:`FusionPass`."""
        return PackedTexts(self.fuse([FusionPass(texts, keys_values)])[0], texts.packing)

    def project_concepts(self, concepts: Concepts) -> KeysValues:
        """Keys and values of whole images or videos, one row for each: first the mean of the patches, then the patches. No text
        attends to padding."""
        assert concepts.image_index is None, "regions are projected by project_regions"
        projected = self.project(concepts.states())
        real = concepts.real_patches()
        if real is None:
            return projected
        see = F.pad(real, (1, 0), value=True)
        return replace(projected, bias=attention_bias(see, linear_dtype(concepts.patches)))

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
        # Project every state once: all patches, the mean of each image, the mean of each region, (I * P + I + R, D').
        projected = self.project_layers(torch.cat([patches.flatten(0, 1), images.mean, regions.mean]))
        first_image_mean, first_region_mean = image_count * length, image_count * (length + 1)
        # A row gathers its states, (R, 2 + P): the region's mean, its image's mean, its image's patches.
        region_mean = first_region_mean + torch.arange(region_count, device=image_index.device)
        image_mean = first_image_mean + image_index
        patch_states = image_index.unsqueeze(1) * length + torch.arange(length, device=image_index.device)
        gathered = torch.cat([region_mean.unsqueeze(1), image_mean.unsqueeze(1), patch_states], dim=1)
        layers = tuple((select_rows(keys, gathered), select_rows(values, gathered)) for keys, values in projected)
        see_region = F.pad(F.pad(regions.patch_mask, (1, 0), value=False), (1, 0), value=True)
        real = images.real_patches()
        of_image = torch.ones_like(regions.patch_mask) if real is None else real.index_select(0, image_index)
        see_image = F.pad(F.pad(of_image, (1, 0), value=True), (1, 0), value=False)
        dtype = linear_dtype(patches)
        return (
            KeysValues(layers, attention_bias(see_region, dtype)),
            KeysValues(layers, attention_bias(see_image, dtype)),
        )
