"""Conversion of weights from the tensor names of the published checkpoints to our names and back, bit for bit.

Published files also contain copies of tensors, and buffers that can be computed. Conversion to our names drops them; conversion
to the published names restores them.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timm.models.beit import gen_relative_position_index
from torch import Tensor

from models.checkpoints.rename import (
    DROPPED,
    SHARED_WORDS,
    TIED,
    Layout,
    ours_to_published,
    published_to_ours,
    stored_twice,
)
from models.core.backbones.tables import offsets_side
from utils.errors import UserError
from utils.files import expanded
from utils.weight_file import read_metadata

PUBLISHED = "published"
"""Key in the header of a converted file. Its value describes a :class:`Form`; see :meth:`Form.as_plain`."""
BIAS_TABLES = re.compile(r"(vision_encoder\.(?:.*\.)?)relative_position_bias_table")
POSITIONS = re.compile(r"(.*\.embeddings\.)position_embeddings\.weight")
MAX_INDEX_BYTES = 4 << 30
"""Maximum total size in bytes of the position-bias indices of a file. An index grows with the fourth power of its grid's side."""


@dataclass(frozen=True)
class Form:
    """Properties of a published file that our tensor names do not show.

    Attributes:
        layout: decides which published name corresponds to one of our names.
        absent: published names of copies and buffers that the file lacks although the authors' code usually saves them.
    """

    layout: Layout
    absent: tuple[str, ...] = ()

    def as_plain(self) -> dict[str, Any]:
        """Returns the form as JSON-compatible values for the header of a file."""
        return {
            "masked_words": self.layout.masked_words,
            "fused_apart": self.layout.separate_fusion,
            "absent": list(self.absent),
        }

    @staticmethod
    def from_plain(values: Any, layout: Layout) -> Form:
        """Creates a form from the values that :meth:`as_plain` returned. The number of text layers is taken from ``layout``.

        Raises:
            UserError: if ``values`` are not the values of a form.
        """
        try:
            masked_words, separate_fusion, absent = values["masked_words"], values["fused_apart"], values["absent"]
        except (TypeError, KeyError):
            masked_words = None
        if not isinstance(masked_words, bool) or not isinstance(separate_fusion, bool) or not isinstance(absent, list):
            raise UserError(f"the header's {PUBLISHED!r} is {values!r:.80}", remedy="convert the published file again")
        return Form(Layout(layout.text_layers, masked_words, separate_fusion), tuple(map(str, absent)))


def was_published(path: str | Path) -> bool:
    """True if a weight file was converted from the published names to ours."""
    return Path(path).suffix == ".safetensors" and PUBLISHED in read_metadata(expanded(path))


def to_ours(state: Mapping[str, Tensor], *, shared_words: bool | None = None) -> tuple[dict[str, Tensor], Form]:
    """Renames tensors from the published names to ours, and drops the copies and buffers that :func:`to_published` restores.

    Tensors without a counterpart in our models keep their names, as do buffers whose values differ from the computed ones.

    Args:
        state: tensors of a published file.
        shared_words: True if the answer decoder uses the text encoder's word table; equal copies of the table are then dropped.
            If None, this is assumed for files with XLM-R, as in the authors' code.

    Raises:
        UserError: if two copies of a tied tensor differ, or if two tensors would get the same name.
    """
    layout = Layout.of_published(state)
    copies = _copies_of(state, layout.separate_fusion if shared_words is None else shared_words)
    computed = computed_buffers(_without(state, copies))
    rename, ours = published_to_ours(layout.text_layers), {}
    for name, tensor in state.items():
        if name in copies or (name in computed and same_bits(computed[name](), tensor)):
            continue
        kept = None if is_buffer(name) else rename(name)
        if (target := kept or name) in ours:
            raise UserError(
                f"{name} is a second tensor for {target}", remedy="the file mixes two layouts: use the original file"
            )
        ours[target] = tensor
    restored = _published(ours, layout)
    absent = tuple(name for name in restored if name not in state)
    return ours, Form(layout, absent)


def to_published(ours: Mapping[str, Tensor], form: Form | None = None) -> tuple[dict[str, Tensor], list[str]]:
    """Converts tensors with our names to the form in which the authors' code saves them.

    Args:
        ours: tensors with our names.
        form: form of the published file from which the tensors come; if None, the form in which the authors' code saves this
            model.

    Returns:
        The tensors under their published names, and the names that have no published counterpart. Tied tensors occur twice and
        share their storage.
    """
    layout = Layout.of_ours({name: tuple(tensor.shape) for name, tensor in ours.items()})
    form = form or Form(layout)
    published = _published(ours, form.layout)
    for name in form.absent:
        published.pop(name, None)
    rename = ours_to_published(form.layout)
    return published, [name for name in ours if rename(name) is None and name not in published]


def _published(ours: Mapping[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    rename = ours_to_published(layout)
    named = {rename(name) or name: tensor for name, tensor in ours.items() if rename(name) or not _is_ours(name)}
    copies = stored_twice(named, layout)
    buffers = {name: make for name, make in computed_buffers(named).items() if name not in named}
    with_copies = {**named, **{copy: named[original] for copy, original in copies.items()}}
    return {**with_copies, **{name: make() for name, make in buffers.items()}}


def _is_ours(name: str) -> bool:
    return name.startswith(("vision.", "text.", "fusion.", "contrastive.", "decoder.", "word_head."))


def _copies_of(state: Mapping[str, Tensor], shared_words: bool) -> list[str]:
    """Names of the tensors in a published file that are copies of other tensors in the file.

    Raises:
        UserError: if a copy is not equal to its original, although the models tie them.
    """
    copies = []
    shared = SHARED_WORDS if shared_words else {}
    for copy, original in {**shared, **TIED}.items():
        if copy not in state or original not in state:
            continue
        if same_bits(state[copy], state[original]):
            copies.append(copy)
        elif copy not in shared:
            raise UserError(
                f"{copy} differs from {original}, to which all models tie it", remedy="use a different file"
            )
    return copies


def _without(state: Mapping[str, Tensor], names: list[str]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if name not in names}


def is_buffer(name: str) -> bool:
    """True if a published name belongs to a buffer that our models compute."""
    return name.rsplit(".", 1)[-1] in DROPPED


def computed_buffers(published: Mapping[str, Tensor]) -> dict[str, Callable[[], Tensor]]:
    """The buffers that the authors' code saves together with these tensors, as functions that compute them.

    Raises:
        UserError: if the buffers would take more memory than in any real model.
    """
    buffers: dict[str, Callable[[], Tensor]] = {}
    index_bytes = 0
    for name, tensor in published.items():
        if (match := BIAS_TABLES.fullmatch(name)) and tensor.dim() == 2 and (side := grid_side(tensor.shape[0])):
            index_bytes += 8 * (side * side + 1) ** 2
            buffers[f"{match[1]}relative_position_index"] = functools.partial(_grid_index, side)
        elif (match := POSITIONS.fullmatch(name)) and tensor.dim() == 2:
            buffers[f"{match[1]}position_ids"] = functools.partial(_position_ids, tensor.shape[0])
    if index_bytes > MAX_INDEX_BYTES:
        raise UserError(
            f"the indices of its position biases would take {index_bytes:,} bytes, more than in any real model",
            remedy="use a different file",
        )
    return buffers


def grid_side(rows: int) -> int | None:
    """Returns the side of the square patch grid whose table of position biases has ``rows`` rows, or None if there is no such
    grid."""
    side = offsets_side(rows)
    return None if side is None else (side + 1) // 2


def _grid_index(side: int) -> Tensor:
    return _index(side).clone()


@functools.lru_cache(maxsize=1)
def _index(side: int) -> Tensor:
    index: Tensor = gen_relative_position_index((side, side))
    return index


def _position_ids(length: int) -> Tensor:
    return torch.arange(length).unsqueeze(0)


def same_bits(first: Tensor, second: Tensor) -> bool:
    """True if two CPU tensors have the same dtype, shape and bytes. Equal values can have different bytes, such as 0.0 and
    -0.0."""
    if first.dtype != second.dtype or first.shape != second.shape:
        return False
    return torch.equal(_bytes(first), _bytes(second))


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)
