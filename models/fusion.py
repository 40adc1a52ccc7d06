"""The fusion encoder: text states look at image memories through cross-attention (section 3.3).

The keys and values of an image depend on the image alone. :meth:`FusionEncoder.remember` projects them once per layer;
every text that looks at the image, matched or not, masked or not, shares them. Texts of one image are joined along the
query axis, so that no key is copied per text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from models.encoded import Concepts, Encoded
from models.layers import (
    Attention,
    CrossAttend,
    Extend,
    Layer,
    LayerConfig,
    Projections,
    attention_mask,
    init_bert_weights,
)
from utils.config import Config
from utils.errors import UserError


class FusionConfig(Config):
    """Sizes of the fusion encoder. What is left out is the text encoder's; what is given stays when the text encoder is
    replaced."""

    layers: int = Field(6, ge=1)
    width: int | None = Field(None, ge=1, description="text states of another width are projected to it")
    heads: int | None = Field(None, ge=1)
    intermediate: int | None = Field(None, ge=1)
    eps: float | None = Field(None, gt=0)
    drop_path: float = Field(0.0, ge=0, lt=1, description="stochastic depth, rising linearly from 0; replaces dropout")

    def layer(self, text: LayerConfig) -> LayerConfig:
        """The sizes of a layer, beside a text encoder whose layers are of the sizes ``text``.

        Raises:
            UserError: if its heads do not divide its width.
        """
        own = {"width": self.width, "heads": self.heads, "intermediate": self.intermediate, "eps": self.eps}
        given = {name: value for name, value in own.items() if value is not None}
        layer = text.model_copy(update={**given, "drop_path": self.drop_path})
        if layer.width % layer.heads:
            raise UserError(
                f"model.fusion: width {layer.width} is not a multiple of heads {layer.heads}; give both, with intermediate"
            )
        return layer


KeysValues = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class LayerMemory:
    """One layer's projected keys and values.

    For whole images ``patches`` holds (N, heads, 1 + P, d), the concept token first, and ``concepts`` is None.
    For rows with a mask ``patches`` holds (N, heads, P, d) and ``concepts`` (R, heads, 1, d).
    """

    patches: KeysValues
    concepts: KeysValues | None


@dataclass(frozen=True)
class ImageMemory:
    """What the fusion layers remember of N images: R rows, each one image or a part of it (see :class:`Concepts`).

    ``token_mask`` (N, 1 + P) bool, True = attend, where it is texts that are remembered, which are padded; else None.
    """

    layers: tuple[LayerMemory, ...]
    patch_mask: Tensor | None
    image_index: Tensor | None
    token_mask: Tensor | None = None

    @property
    def images(self) -> int:
        return self.layers[0].patches[0].shape[0]


@dataclass(frozen=True)
class Look:
    """Which memory row each text of a stretch looks at.

    ``rows`` (M,) int64 memory rows. ``texts_per_image``: no image is looked at by more texts than this; known to the caller,
    so that the device is not asked. None: keys are copied per text, for draws that no bound holds.
    """

    memory: ImageMemory
    rows: Tensor
    texts_per_image: int | None


class FusionEncoder(nn.Module):
    """Layers with cross-attention on the text states."""

    def __init__(self, config: FusionConfig, text: LayerConfig, vision_width: int):
        """``text``: the sizes of the text encoder's layers."""
        super().__init__()
        layer = config.layer(text)
        self.layer_config = layer
        self.layer = nn.ModuleList(
            Layer(layer.at_depth(index, config.layers), memory_width=vision_width) for index in range(config.layers)
        )
        self.apply(partial(init_bert_weights, std=layer.init_std))

    def remember(self, concepts: Concepts) -> ImageMemory:
        """Project the keys and values of every layer, once per image and once per concept token."""
        whole = concepts.patch_mask is None
        tokens = concepts.tokens() if whole else concepts.patches
        layers = []
        for layer in self.layer:
            project: Projections = layer.crossattention.self  # type: ignore[union-attr, assignment]
            concept = None if whole else project(concepts.concept.unsqueeze(1))
            layers.append(LayerMemory(project(tokens), concept))
        return ImageMemory(tuple(layers), concepts.patch_mask, concepts.image_index)

    def remember_text(self, text: Encoded) -> ImageMemory:
        """The same for texts (N, L, D) in the place of whole images."""
        layers = []
        for layer in self.layer:
            project: Projections = layer.crossattention.self  # type: ignore[union-attr, assignment]
            layers.append(LayerMemory(project(text.states), None))
        return ImageMemory(tuple(layers), None, None, text.mask)

    def forward(
        self,
        text: Encoded,
        looks: Sequence[Look] = (),
        cls_only: bool = False,
        extend: Callable[[int], Extend] | None = None,
    ) -> Encoded:
        """Fuse texts with what they look at.

        Args:
            text: (M, L, D) states; their order is that of ``looks``.
            looks: stretches of rows that add up to M. Empty: the cross-attention is skipped, as for texts without image.
            cls_only: only the first states ([CLS]) are wanted, (M, 1, D): the last layer computes no others.
            extend: of each layer by its number, see :class:`~models.layers.Attention`.
        """
        assert not looks or sum(len(look.rows) for look in looks) == len(text.states), "looks must cover the texts"
        plans = [_plan(look) for look in looks]
        attend = attention_mask(text.mask)
        states, last = text.states, len(self.layer) - 1
        for index, layer in enumerate(self.layer):
            queries = 1 if cls_only and index == last else None
            look_at = _cross_attend(plans, index) if plans else None
            states = layer(states, attend, look_at, queries, extend(index) if extend else None)
        return Encoded(states, text.mask[:, :1] if cls_only else text.mask)


@dataclass(frozen=True)
class _Plan:
    """A look with its layout. ``kind`` joined: ``table`` (N * S,) names the text in each of an image's S slots, ``place``
    (M,) the slot of each text. copied: keys are gathered per text."""

    look: Look
    kind: Literal["joined", "copied"]
    slots: int = 1
    table: Tensor | None = None
    place: Tensor | None = None

    @property
    def image_of_text(self) -> Tensor:
        index = self.look.memory.image_index
        return self.look.rows if index is None else index.index_select(0, self.look.rows)


def _plan(look: Look) -> _Plan:
    if look.texts_per_image is None:
        return _Plan(look, "copied")
    images, slots = look.memory.images, look.texts_per_image
    image = _Plan(look, "joined").image_of_text
    order = image.argsort(stable=True)
    arranged = image.index_select(0, order)
    first = torch.searchsorted(arranged, arranged)
    slot = torch.arange(len(image), device=image.device) - first
    place = torch.empty_like(image).scatter_(0, order, arranged * slots + slot)
    table = torch.zeros(images * slots, dtype=torch.int64, device=image.device)
    table.scatter_(0, place, torch.arange(len(image), device=image.device))
    return _Plan(look, "joined", slots, table, place)


def _cross_attend(plans: Sequence[_Plan], layer: int) -> CrossAttend:
    def attend(attention: Attention, queries: Tensor) -> Tensor:
        parts = queries.split([len(plan.look.rows) for plan in plans])
        done = [_ATTEND[plan.kind](attention, part, plan, layer) for plan, part in zip(plans, parts, strict=True)]
        return torch.cat(done) if len(done) > 1 else done[0]

    return attend


def _attend_copied(attention: Attention, queries: Tensor, plan: _Plan, layer: int) -> Tensor:
    memory = plan.look.memory
    stored = memory.layers[layer]
    keys, values = (part.index_select(0, plan.image_of_text) for part in stored.patches)
    if stored.concepts is None:
        seen_tokens = None if memory.token_mask is None else memory.token_mask.index_select(0, plan.image_of_text)
        return attention.attend(queries, keys, values, None if seen_tokens is None else attention_mask(seen_tokens))
    concept_keys, concept_values = (part.index_select(0, plan.look.rows) for part in stored.concepts)
    keys, values = torch.cat([concept_keys, keys], dim=2), torch.cat([concept_values, values], dim=2)
    assert memory.patch_mask is not None
    seen = memory.patch_mask.index_select(0, plan.look.rows)
    mask = torch.cat([seen.new_ones(len(seen), 1), seen], dim=1)[:, None, None, :]
    return attention.attend(queries, keys, values, mask)


def _attend_joined(attention: Attention, queries: Tensor, plan: _Plan, layer: int) -> Tensor:
    memory, slots, table, place = plan.look.memory, plan.slots, plan.table, plan.place
    assert table is not None and place is not None
    stored = memory.layers[layer]
    _, heads, length, size = queries.shape
    images = memory.images

    def to_slots(per_text: Tensor) -> Tensor:
        """(M, heads, l, d) -> (N, heads, S * l, d)."""
        laid = per_text.index_select(0, table).view(images, slots, heads, -1, size)
        return laid.transpose(1, 2).reshape(images, heads, -1, size)

    keys, values = stored.patches
    mask = None if memory.token_mask is None else attention_mask(memory.token_mask)
    if stored.concepts is not None:
        concept_keys, concept_values = (to_slots(part.index_select(0, plan.look.rows)) for part in stored.concepts)
        keys, values = torch.cat([concept_keys, keys], dim=2), torch.cat([concept_values, values], dim=2)
        mask = _slot_mask(memory, plan, length)
    attended = attention.attend(to_slots(queries), keys, values, mask)
    per_slot = attended.view(images, heads, slots, length, size).transpose(1, 2).reshape(-1, heads, length, size)
    return per_slot.index_select(0, place)


def _slot_mask(memory: ImageMemory, plan: _Plan, length: int) -> Tensor:
    """(N, 1, S * L, S + P): the texts of slot s see the concept token of slot s and the patches of their own row.

    An empty slot sees what text 0 sees: never nothing, and nobody reads it.
    """
    assert memory.patch_mask is not None and plan.table is not None
    images, slots = memory.images, plan.slots
    seen = memory.patch_mask.index_select(0, plan.look.rows.index_select(0, plan.table)).view(images, slots, -1)
    own = torch.eye(slots, dtype=torch.bool, device=seen.device).expand(images, slots, slots)
    mask = torch.cat([own, seen], dim=2)
    return mask.repeat_interleave(length, dim=1, output_size=slots * length).unsqueeze(1)


_ATTEND = {"joined": _attend_joined, "copied": _attend_copied}
