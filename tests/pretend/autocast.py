"""Autocast of the pretend device, following the rules for CUDA in torch's own header."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

KEY = "AutocastPrivateUse1"
HEADER = Path(torch.__file__).parent / "include" / "ATen" / "autocast_mode.h"
HALF = (torch.float16, torch.bfloat16)
FLOATS = (*HALF, torch.float32)


def register(device_type: str) -> list[torch.library.Library]:
    """Registers the rules for operations of ``device_type``. They apply as long as the returned object exists."""
    every, ours = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
    every.fallback(torch.library.fallthrough_kernel, KEY)
    for rule, macro in (
        (_lower, "LOWER_PRECISION_FP"),
        (_float32, "FP32"),
        (_float32_result, "FP32_SET_OPT_DTYPE"),
        (_float32_norm, "DIFFERENT_REDISPATCH_SIGNATURE"),
        (_promote, "PROMOTE"),
    ):
        for name in operations(macro):
            ours.impl(name, partial(_ruled, rule, _overload(name), device_type), KEY)
    return [every, ours]


def operations(macro: str) -> Iterator[str]:
    """Names of the operations that a macro of the header lists, such as "softmax.int"."""
    body = re.search(rf"#define AT_FORALL_{macro}\(_\)((?:.*\\\n)*.*\n)", HEADER.read_text(encoding="utf-8"))
    assert body, f"{HEADER} has no AT_FORALL_{macro}"
    text = body[1].replace("\\", " ")
    if macro.startswith("DIFFERENT"):
        yield from re.findall(r'"([\w.]+)"', text)
        return
    for name, overload in re.findall(r"_\((\w+)(?:,\s*(\w+))?\)", text):
        yield f"{name}.{overload}" if overload else name


def lists_of_torch(device: torch.device) -> Any:
    """Operations with operands on ``device``, by rule, as listed in torch's own tests of CUDA's autocast.

    Torch keeps these lists together with test helpers whose import changes settings of the process, so the helpers are replaced.
    """
    helpers = SimpleNamespace(TEST_WITH_ROCM=False, TestCase=object)
    with patch.dict(sys.modules, {"torch.testing._internal.common_utils": helpers}):
        from torch.testing._internal.autocast_test_lists import AutocastTestLists

        return AutocastTestLists(device)


def _overload(name: str) -> Any:
    packet, _, overload = name.partition(".")
    return getattr(getattr(torch.ops.aten, packet), overload or "default")


def _ruled(rule: Any, operation: Any, device_type: str, *args: Any, **kwargs: Any) -> Any:
    """The operation under autocast. Operations that it calls are not cast again."""
    with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, KEY))):
        args, kwargs = rule(operation, device_type, args, kwargs)
        return operation(*args, **kwargs)


def _cast(value: Any, device_type: str, dtype: torch.dtype) -> Any:
    """``value`` with its 16-bit and 32-bit tensors on the device converted to ``dtype``."""

    def cast(leaf: Any) -> Any:
        fits = isinstance(leaf, Tensor) and leaf.device.type == device_type and leaf.dtype in FLOATS
        return leaf.to(dtype) if fits else leaf

    return tree_map(cast, value)


def _lower(operation: Any, device_type: str, args: Any, kwargs: Any) -> tuple[Any, Any]:
    return _cast((args, kwargs), device_type, torch.get_autocast_dtype(device_type))


def _float32(operation: Any, device_type: str, args: Any, kwargs: Any) -> tuple[Any, Any]:
    return _cast((args, kwargs), device_type, torch.float32)


def _float32_result(operation: Any, device_type: str, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """A result in float32, unless the caller asks for another dtype or the operands have more bits."""
    if args[0].dtype in HALF:
        names = [argument.name for argument in operation._schema.arguments]
        if kwargs.get("dtype") is None and len(args) <= names.index("dtype"):
            kwargs = {**kwargs, "dtype": torch.float32}
    return args, kwargs


def _float32_norm(operation: Any, device_type: str, args: Any, kwargs: Any) -> tuple[Any, Any]:
    return _cast(args, device_type, torch.float32), kwargs


def _promote(operation: Any, device_type: str, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """Converts operands of several precisions to the highest of them."""
    dtypes = {leaf.dtype for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
    widest = torch.float32 if torch.float32 in dtypes else torch.get_autocast_dtype(device_type)
    return _cast((args, kwargs), device_type, widest)
