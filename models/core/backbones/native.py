"""Runs timm's ViTs on images that keep their aspect ratio.

Patches are embedded for all images at once if the embedding is linear, and otherwise for all images with the same grid. Then all
images pass through the blocks together, padded to the
same number of patches. No token attends to padding. A model for a fixed image size has the same parameters, under the same names.
"""

from __future__ import annotations

from functools import partial
from math import prod
from typing import Any, cast

import torch
from timm.layers import PatchEmbed
from timm.layers.pos_embed_sincos import RotaryEmbeddingDinoV3
from timm.models.beit import Beit
from timm.models.eva import Eva
from timm.models.naflexvit import NaFlexVit
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from batches.images import Grid, NativeImages
from models.core.blocks import attention_bias, linear_dtype
from utils.errors import UserError
from utils.image_size import NativeSize, sides_for


def creation_options(name: str, size: NativeSize) -> dict[str, Any]:
    """Returns the options with which timm creates a model for images of ``size``: for the largest square.

    A table of absolute positions belongs to this square, and is resized for each image. BEiT's tables of relative positions are
    not resized: a pair of patches has the bias of its offset, and of the table's last offset beyond it.
    """
    options: dict[str, Any] = {"img_size": sides_for(size, 1, 1)[0]}
    return options if name.startswith(("beit", "naflexvit")) else {**options, "dynamic_img_size": True}


class NativeViT:
    """A timm ViT that takes images of different shapes.

    Args:
        module: the model, created with :func:`creation_options`.
        name: its name in the config, for error messages.

    Raises:
        UserError: if the model is of a type whose blocks do not take a mask, or whose positions belong to one grid.
    """

    def __init__(self, module: Any, name: str):
        known = type(module) in (VisionTransformer, Eva, Beit, NaFlexVit)
        if not known or getattr(module, "rope_mixed", False) or getattr(module, "rel_pos_bias", None) is not None:
            raise UserError(
                f"{name!r} takes images of one height and width only",
                where="model.vision.image_size",
                remedy="set it to a fixed size, or use a ViT, BEiT, EVA, DINOv2, DINOv3 or NaFlexVit model of timm",
            )
        self.module = module
        self._offsets: tuple[Tensor | None, Tensor | None] = None, None
        """For BEiT, ``offsets`` and ``grid_numbers`` of the current forward pass; see :meth:`_blocks`."""
        if not isinstance(module, NaFlexVit):
            module.patch_embed.strict_img_size = False
        if isinstance(module, Beit):
            for attention in (cast(Any, block).attn for block in module.blocks):
                if attention.relative_position_bias_table is not None:
                    attention.relative_position_index = None  # for the square
                    attention._get_rel_pos_bias = partial(self._biases, attention)

    def states(self, images: NativeImages) -> Tensor:
        """States (I, prefix + P, D) of normalised ``images`` after the last norm, undefined at padding."""
        grids = list(dict.fromkeys(images.grids))
        rows = [[row for row, grid in enumerate(images.grids) if grid == each] for each in grids]
        order = torch.tensor([row for same in rows for row in same]).argsort().to(images.device)
        grid_numbers = torch.tensor([grids.index(grid) for grid in images.grids]).to(images.device)
        patches = self._linear_patches(images.patches)
        embedded, ropes, offsets, length = [], [], [], images.patches.shape[1]
        for grid, same in zip(grids, rows, strict=True):
            if patches is None:
                tokens, rope, pairs = self._embedded(images.select(same).rasters(grid), grid)
            else:
                tokens, rope, pairs = self._positioned(patches[same, : prod(grid)], grid)
            padding = length - prod(grid)
            embedded.append(F.pad(tokens, (0, 0, 0, padding)))
            if rope is not None:
                ropes.append(F.pad(rope, (0, 0, 0, padding)))
            if pairs is not None:
                offsets.append(F.pad(pairs, (0, padding, 0, padding)))
        states = torch.cat(embedded).index_select(0, order)
        rope = torch.stack(ropes).index_select(0, grid_numbers).unsqueeze(1) if ropes else None
        pairs = torch.stack(offsets) if offsets else None
        see = F.pad(images.mask(), (self.module.num_prefix_tokens, 0), value=True)
        return self._blocks(states, rope, pairs, grid_numbers, attention_bias(see, linear_dtype(states)))

    def states_of_grid(self, pixels: Tensor, grid: Grid) -> Tensor:
        """States (I, prefix + P, D) after the last norm, from normalised ``pixels`` (I, 3, H, W) of images with the same
        ``grid``. Nothing is padded."""
        return self._blocks(*self._embedded(pixels, grid), None, None)

    def _linear_patches(self, patches: Tensor) -> Tensor | None:
        """Embeds the patches (I, P, 3, p, p) of all images at once if the embedding is linear, so that each patch is embedded by
        itself. Returns (I, P, D), or None."""
        embed = getattr(self.module, "patch_embed", None)
        if type(embed) is not PatchEmbed:
            return None
        weight = embed.proj.weight.flatten(1)
        states: Tensor = embed.norm(F.linear(patches.flatten(2), weight, embed.proj.bias))
        return states

    def _embedded(self, pixels: Tensor, grid: Grid) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Embeds images with the same grid, (I, 3, H, W); see :meth:`_positioned`."""
        module = self.module
        if isinstance(module, NaFlexVit):
            embeds = module._forward_embeds(pixels, None, None, None)
            return embeds["patches"], embeds["rope_embeds"], None
        patches = module.patch_embed(pixels)
        return self._positioned(patches.flatten(1, 2) if patches.dim() == 4 else patches, grid)  # some return a grid

    def _positioned(self, patches: Tensor, grid: Grid) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Adds prefix tokens and positions to the embedded patches of images with the same grid, (I, P, D).

        Returns:
            The tokens (I, prefix + P, D) with absolute positions; the rotary positions (P, d), if the model has them; and for
            BEiT, the row of the bias table for each pair of tokens, (N, N).
        """
        module = self.module
        prefix = [
            token.expand(patches.shape[0], -1, -1)
            for token in (module.cls_token, getattr(module, "reg_token", None))
            if token is not None
        ]
        if module.pos_embed is None:
            tokens = torch.cat([*prefix, patches], dim=1)
        else:
            of_prefix, positions = self._positions(grid)
            if of_prefix.shape[1]:
                tokens = torch.cat([*prefix, patches], dim=1) + torch.cat([of_prefix, positions], dim=1)
            else:
                tokens = torch.cat([*prefix, patches + positions], dim=1)
        tokens = module.pos_drop(tokens)
        if isinstance(module, Beit):
            side = module.patch_embed.grid_size[0]
            return tokens, None, offset_rows(grid, side, patches.device)
        return module.norm_pre(tokens), self._rotary_positions(grid), None

    def _rotary_positions(self, grid: Grid) -> Tensor | None:
        """Returns the rotary positions (P, d) of a grid, or None if the model has none."""
        rope: Any = getattr(self.module, "rope", None)
        if not isinstance(rope, RotaryEmbeddingDinoV3):
            return None if rope is None else rope.get_embed(shape=grid)
        periods: Tensor = rope.get_buffer("periods")
        # As in rope.get_embed, which would make the grid of the example a constant of an exported graph.
        axes = [(2 * torch.arange(count, device=periods.device) + 1) / count - 1 for count in grid]
        coordinates = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, 1)
        return torch.cat(rope._get_pos_embed_from_coords(coordinates), dim=-1)

    def _positions(self, grid: Grid) -> tuple[Tensor, Tensor]:
        """Returns the absolute positions of the prefix tokens (1, prefix or 0, D), and of the patches, resized to ``grid`` (1, P,
        D), as DINOv2 resizes its table."""
        table: Tensor = self.module.pos_embed
        square: Grid = self.module.patch_embed.grid_size
        of_prefix, of_patches = table.split([table.shape[1] - prod(square), prod(square)], dim=1)
        image = of_patches.transpose(1, 2).unflatten(2, square)
        image = F.interpolate(image, grid, mode="bicubic", align_corners=False, antialias=False)
        return of_prefix, image.flatten(2).transpose(1, 2)

    def _blocks(
        self,
        states: Tensor,
        rope: Tensor | None,
        offsets: Tensor | None,
        grid_numbers: Tensor | None,
        bias: Tensor | None,
    ) -> Tensor:
        """Runs the blocks and the last norm.

        Args:
            states: the embedded tokens, (I, N, D).
            rope: rotary positions, (P, d) or (I, 1, P, d).
            offsets: for BEiT, the row of the bias table for each pair of tokens, (N, N), or (grids, N, N) for different grids.
            grid_numbers: the index in ``offsets`` for each image, (I,) int64.
            bias: (I, 1, 1, N), added to the attention scores.
        """
        for block in self.module.blocks:
            run = partial(self._block, block, rope=rope, offsets=(offsets, grid_numbers), bias=bias)
            recompute = self.module.grad_checkpointing and torch.is_grad_enabled()
            states = checkpoint(run, states, use_reentrant=False) if recompute else run(states)
        normed: Tensor = self.module.norm(states)
        return normed

    def _block(
        self,
        block: Any,
        states: Tensor,
        rope: Tensor | None,
        offsets: tuple[Tensor | None, Tensor | None],
        bias: Tensor | None,
    ) -> Tensor:
        result: Tensor
        if isinstance(self.module, Beit):
            self._offsets = offsets
            result = block(states, shared_rel_pos_bias=bias)
        elif rope is not None:
            result = block(states, rope=rope, attn_mask=bias)
        else:
            result = block(states, attn_mask=bias)
        return result

    def _biases(self, attention: Any) -> Tensor:
        """Replaces timm's ``_get_rel_pos_bias``, which returns the biases of the one grid that the model was created for."""
        rows, grid_numbers = self._offsets
        biases: Tensor = attention.relative_position_bias_table[rows].movedim(-1, -3)
        return biases if grid_numbers is None else biases.index_select(0, grid_numbers)


def offset_rows(grid: Grid, side: int, device: torch.device) -> Tensor:
    """Returns the row of BEiT's bias table for each pair of the tokens of an image, (1 + P, 1 + P) int64.

    Args:
        grid: rows and columns of patches of the image.
        side: number of rows and columns of patches of the square to which the table belongs.
        device: device of the result.
    """
    last, span = side - 1, 2 * side - 1
    row, column = torch.meshgrid(*(torch.arange(count, device=device) for count in grid), indexing="ij")
    down, right = ((axis.unsqueeze(1) - axis).clamp(-last, last) + last for axis in (row.flatten(), column.flatten()))
    pairs = F.pad(down * span + right, (0, 0, 1, 0), value=span * span)  # from [CLS] to a patch
    pairs = F.pad(pairs, (1, 0, 0, 0), value=span * span + 1)  # from a patch to [CLS]
    corner = torch.zeros_like(pairs, dtype=torch.bool)
    corner[0, 0] = True
    return pairs.masked_fill(corner, span * span + 2)
