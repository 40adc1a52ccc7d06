"""The fusion encoder: text states look at image memories through cross-attention (section 3.3).

The keys and values of an image depend on the image alone. :meth:`FusionEncoder.remember` projects them once per layer;
every text that looks at the image, matched or not, masked or not, shares them. Texts of one image are joined along the
query axis, so that no key is copied per text.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from models.encoded import Concepts, Encoded
from models.layers import (
    Asking,
    Attention,
    Cross,
    CrossAttend,
    Extend,
    Layer,
    LayerConfig,
    Projections,
    SelfLook,
    attention_mask,
    init_bert_weights,
    merge_heads,
    query_dtype,
    run_layer,
    split_heads,
    uneven_heads,
)
from models.layout import Exchange, Layout, join, on_host, text_layout
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
        uneven = uneven_heads(layer.width, layer.heads)
        if uneven:
            raise UserError(
                f"model.fusion: {uneven} (what is left out is the text encoder's; give both, with intermediate)"
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
        self.recompute = False
        self.apply(partial(init_bert_weights, std=layer.init_std))

    def remember(self, concepts: Concepts) -> ImageMemory:
        """Project the keys and values of every layer, once per image and once per concept token."""
        whole = concepts.patch_mask is None
        patches = self._project(concepts.tokens() if whole else concepts.patches)
        own = [None] * len(self.layer) if whole else self._project(concepts.concept.unsqueeze(1))
        layers = tuple(LayerMemory(seen, concept) for seen, concept in zip(patches, own, strict=True))
        return ImageMemory(layers, concepts.patch_mask, concepts.image_index)

    def remember_text(self, text: Encoded) -> ImageMemory:
        """The same for texts (N, L, D) in the place of whole images."""
        layers = tuple(LayerMemory(seen, None) for seen in self._project(text.states))
        return ImageMemory(layers, None, None, text.mask)

    def _project(self, states: Tensor) -> list[KeysValues]:
        """Keys and values of ``states`` (N, L, D') for each layer."""
        projections = [cast(Projections, layer.crossattention.self) for layer in self.layer]  # type: ignore[union-attr]
        if not torch.is_autocast_enabled(states.device.type):
            return [project(states) for project in projections]
        # In one product the states are cast once instead of for each layer, and their gradient is summed in 32 bits.
        linears = [linear for project in projections for linear in (project.key, project.value)]
        weight, bias = (torch.cat([getattr(linear, name) for linear in linears]) for name in ("weight", "bias"))
        parts = F.linear(states, weight, bias).chunk(len(linears), dim=2)
        heads = [split_heads(part, self.layer_config.heads) for part in parts]
        return list(zip(heads[::2], heads[1::2], strict=True))

    def forward(
        self,
        text: Encoded,
        look: Look | None = None,
        cls_only: bool = False,
        extend: Callable[[int], Extend] | None = None,
    ) -> Encoded:
        """Fuse texts with what they look at.

        Args:
            text: (M, L, D) states.
            look: what each of them looks at; None: the cross-attention is skipped, as for texts without image.
            cls_only: only the first states ([CLS]) are wanted, (M, 1, D): the last layer computes no others.
            extend: of each layer by its number, see :class:`~models.layers.Attention`.
        """
        return self.fuse([Part(text, look, At.cls(text.states) if cls_only else None)], extend)[0]

    def fuse(self, parts: Sequence[Part], extend: Callable[[int], Extend] | None = None) -> list[Encoded]:
        """Fuse texts of any lengths, each with what it looks at, in one pass; in the order of ``parts``."""
        order = sorted(range(len(parts)), key=lambda index: parts[index].look is None)
        stretches = [_Stretch.of(parts[index]) for index in order]
        rows = join([stretch.keys.to_rows(stretch.part.text.states) for stretch in stretches])
        rows = self.run(rows, *_plan_layers(stretches), extend)
        fused = rows.split([stretch.queries.rows for stretch in stretches])
        found = {index: stretch.result(own) for index, stretch, own in zip(order, stretches, fused, strict=True)}
        return [found[index] for index in range(len(parts))]

    def run(
        self,
        rows: Tensor,
        inner: _LayerPlan,
        last: _LayerPlan,
        extend: Callable[[int], Extend] | None = None,
    ) -> Tensor:
        """All layers on ``rows`` (T, D) -> those that are wanted of the last layer."""
        for index, layer in enumerate(self.layer):
            plan = last if index == len(self.layer) - 1 else inner
            rows = run_layer(
                layer, self.recompute, rows, plan.asking, plan.cross(index), extend(index) if extend else None
            )
        return rows


@dataclass(frozen=True)
class At:
    """The tokens whose fused states are wanted. ``positions`` (M, K) int64; ``used`` (M, K) bool, each row's first; ``tokens``:
    how many are used, or a few more, where the host knows."""

    positions: Tensor
    used: Tensor
    tokens: int | None = None

    @staticmethod
    def cls(texts: Tensor) -> At:
        """The first token of each of ``texts`` (M, …)."""
        return At.all(torch.zeros(len(texts), 1, dtype=torch.int64, device=texts.device))

    @staticmethod
    def all(positions: Tensor) -> At:
        """Those at ``positions`` (M, K), every one."""
        return At(positions, torch.ones_like(positions, dtype=torch.bool), positions.numel())


@dataclass(frozen=True)
class Part:
    """Texts with what they look at. ``at``: which states are wanted, so that the last layer computes no others; None: all."""

    text: Encoded
    look: Look | None = None
    at: At | None = None


@dataclass(frozen=True)
class _Stretch:
    """A part with its layouts: of all its tokens, and of those that are wanted."""

    part: Part
    keys: Layout
    queries: Layout

    @staticmethod
    def of(part: Part) -> _Stretch:
        keys = text_layout(part.text.states.shape, part.text.mask, part.text.tokens)
        return _Stretch(part, keys, keys if part.at is None else Layout.packed(part.at.used, part.at.tokens))

    def wanted_rows(self, start: int) -> Tensor:
        """Numbers of the wanted rows, where the stretch's first is ``start``."""
        at, device = self.part.at, self.part.text.states.device
        if at is None:
            return torch.arange(start, start + self.keys.rows, device=device)
        return self.queries.to_rows(self.keys.rows_at(at.positions).view(*at.positions.shape, 1)).squeeze(1) + start

    def self_looks(self) -> tuple[SelfLook, SelfLook]:
        """Of the inner layers and of the last one."""
        mask = attention_mask(self.part.text.mask, query_dtype(self.part.text.states))
        if self.part.at is not None and mask.shape[2] > 1:
            where = self.part.at.positions[:, None, :, None].expand(-1, -1, -1, mask.shape[3])
            own = mask.expand(len(where), -1, -1, -1).gather(2, where)
        else:
            own = mask
        return SelfLook(self.keys, self.keys, mask), SelfLook(self.queries, self.keys, own)

    def result(self, rows: Tensor) -> Encoded:
        text, at = self.part.text, self.part.at
        mask, tokens = (text.mask, text.tokens) if at is None else (at.used, at.tokens)
        return Encoded(self.queries.to_slots(rows), mask, tokens)


@dataclass(frozen=True)
class _LayerPlan:
    """What a layer computes and where its rows look."""

    asking: Asking
    plans: tuple[_Plan, ...]

    def cross(self, layer: int) -> Cross | None:
        if not self.plans:
            return None
        return Cross(sum(plan.layout.rows for plan in self.plans), _cross_attend(self.plans, layer))


def _plan_layers(stretches: Sequence[_Stretch]) -> tuple[_LayerPlan, _LayerPlan]:
    """Of the inner layers and of the last one; stretches that look at nothing come last."""
    looks = [stretch.self_looks() for stretch in stretches]
    seeing = [(stretch, _Slots.of(stretch.part.look)) for stretch in stretches if stretch.part.look is not None]
    plans = tuple(_Plan.of(slots, stretch.keys) for stretch, slots in seeing)
    inner = _LayerPlan(Asking(tuple(look for look, _ in looks)), plans)
    if all(stretch.part.at is None for stretch in stretches):
        return inner, inner
    starts = itertools.accumulate([0, *(stretch.keys.rows for stretch in stretches[:-1])])
    wanted = join([stretch.wanted_rows(start) for stretch, start in zip(stretches, starts, strict=True)])
    asking = Asking(tuple(look for _, look in looks), wanted)
    return inner, _LayerPlan(asking, tuple(_Plan.of(slots, stretch.queries) for stretch, slots in seeing))


@dataclass(frozen=True)
class _Slots:
    """How a look's texts are joined, each in a slot of its image's.

    ``image`` (M,) is the image of each text, ``table`` (N * S,) the text in each of an image's S slots, ``rows`` (N * S,) that
    text's memory row, ``of_text`` (M,) the slot of each text. ``count`` S; 0: they are not joined, and keys are copied per text.
    """

    look: Look
    image: Tensor
    count: int = 0
    table: Tensor | None = None
    rows: Tensor | None = None
    of_text: Tensor | None = None

    @staticmethod
    def of(look: Look) -> _Slots:
        image, device = _image_of_text(look), look.rows.device
        slots = look.texts_per_image
        if slots is None:
            if not on_host(look.rows):
                return _Slots(look, image)
            slots = int(image.bincount().max())
        order = image.argsort(stable=True)
        arranged = image.index_select(0, order)
        slot = torch.arange(len(image), device=device) - torch.searchsorted(arranged, arranged)
        of_text = torch.empty_like(image).scatter_(0, order, arranged * slots + slot)
        table = torch.zeros(look.memory.images * slots, dtype=torch.int64, device=device)
        table.scatter_(0, of_text, torch.arange(len(image), device=device))
        return _Slots(look, image, slots, table, look.rows.index_select(0, table), of_text)


@dataclass(frozen=True)
class _Plan:
    """A look with the layout of its queries.

    ``mask`` as :func:`~models.layers.attention_mask` makes it. Joined, an image's texts share one row of queries: ``exchange``
    leads from the layout's rows, left, to the joined ones (N * S * L), right.
    """

    slots: _Slots
    layout: Layout
    mask: Tensor | None
    exchange: Exchange | None = None

    @property
    def look(self) -> Look:
        return self.slots.look

    @staticmethod
    def of(slots: _Slots, layout: Layout) -> _Plan:
        memory = slots.look.memory
        dtype = query_dtype(memory.layers[0].patches[0])
        if slots.table is None or slots.of_text is None:
            seen = _copied_mask(slots)
            return _Plan(slots, layout, None if seen is None else attention_mask(seen, dtype))
        length, device = layout.shape[1], slots.table.device
        take = layout.row_of_slot(device).view(layout.shape).index_select(0, slots.table).flatten()
        place = (slots.of_text.unsqueeze(1) * length + torch.arange(length, device=device)).flatten()
        exchange = Exchange.of(take, place.index_select(0, layout.slot_of_row(device)))
        seen = memory.token_mask if memory.layers[0].concepts is None else _slot_mask(slots, length)
        return _Plan(slots, layout, None if seen is None else attention_mask(seen, dtype), exchange)


def _image_of_text(look: Look) -> Tensor:
    index = look.memory.image_index
    return look.rows if index is None else index.index_select(0, look.rows)


def _copied_mask(slots: _Slots) -> Tensor | None:
    """What each text sees of its copy, (M, P), or (M, 1 + P) with its concept token; None: all of it."""
    memory = slots.look.memory
    if memory.layers[0].concepts is None:
        return None if memory.token_mask is None else memory.token_mask.index_select(0, slots.image)
    assert memory.patch_mask is not None
    seen = memory.patch_mask.index_select(0, slots.look.rows)
    return torch.cat([seen.new_ones(len(seen), 1), seen], dim=1)


def _slot_mask(slots: _Slots, length: int) -> Tensor:
    """(N, S * L, S + P): the texts of slot s see the concept token of slot s and the patches of their own row.

    An empty slot sees what text 0 sees: never nothing, and nobody reads it.
    """
    memory, count = slots.look.memory, slots.count
    assert memory.patch_mask is not None and slots.rows is not None
    seen = memory.patch_mask.index_select(0, slots.rows).view(memory.images, count, -1)
    own = torch.eye(count, dtype=torch.bool, device=seen.device).expand(memory.images, count, count)
    return torch.cat([own, seen], dim=2).repeat_interleave(length, dim=1, output_size=count * length)


def _cross_attend(plans: Sequence[_Plan], layer: int) -> CrossAttend:
    def attend(attention: Attention, queries: Tensor) -> Tensor:
        parts = queries.split([plan.layout.rows for plan in plans])
        return join(
            [
                (_attend_copied if plan.exchange is None else _attend_joined)(attention, part, plan, layer)
                for plan, part in zip(plans, parts, strict=True)
            ]
        )

    return attend


def _attend_copied(attention: Attention, rows: Tensor, plan: _Plan, layer: int) -> Tensor:
    stored = plan.look.memory.layers[layer]
    queries = split_heads(plan.layout.to_slots(rows), attention.self.heads)
    keys, values = (part.index_select(0, plan.slots.image) for part in stored.patches)
    if stored.concepts is not None:
        concept_keys, concept_values = (part.index_select(0, plan.look.rows) for part in stored.concepts)
        keys, values = torch.cat([concept_keys, keys], dim=2), torch.cat([concept_values, values], dim=2)
    return plan.layout.to_rows(merge_heads(attention.attend(queries, keys, values, plan.mask)))


def _attend_joined(attention: Attention, rows: Tensor, plan: _Plan, layer: int) -> Tensor:
    memory, exchange = plan.look.memory, plan.exchange
    assert exchange is not None
    stored = memory.layers[layer]
    keys, values = stored.patches
    if stored.concepts is not None:
        concept_keys, concept_values = (_to_images(part, plan.slots) for part in stored.concepts)
        keys, values = torch.cat([concept_keys, keys], dim=2), torch.cat([concept_values, values], dim=2)
    queries = exchange.to_right(rows).view(memory.images, -1, rows.shape[1])
    attended = attention.attend(split_heads(queries, attention.self.heads), keys, values, plan.mask)
    return exchange.to_left(merge_heads(attended).flatten(0, 1))


def _to_images(concepts: Tensor, slots: _Slots) -> Tensor:
    """Keys, or values, of concept tokens (R, heads, 1, d), of each text's in its slot: (N, heads, S, d)."""
    assert slots.rows is not None
    own = concepts.index_select(0, slots.rows).squeeze(2)
    return own.view(slots.look.memory.images, slots.count, *own.shape[1:]).transpose(1, 2)
