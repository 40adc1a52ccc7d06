"""Computes the sizes of tensors, and copies modules to the meta device."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Owner = TypeVar("Owner")


def tensor_bytes(tensors: Iterable[Tensor]) -> int:
    """Returns the total size of the tensors in bytes."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def on_meta(owner: Owner, module: nn.Module) -> Owner:
    """Returns a copy of ``owner`` in which ``module`` is on the meta device. Tensors on the meta device have shapes but no
    content, so running the module takes no memory."""
    memo: dict[int, Any] = {}
    for tensor in (*module.parameters(), *module.buffers()):
        empty = torch.empty_like(tensor, device="meta")
        is_parameter = isinstance(tensor, nn.Parameter)
        memo[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if is_parameter else empty
    return copy.deepcopy(owner, memo)
