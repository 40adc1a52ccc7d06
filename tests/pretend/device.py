"""The pretend device as a back end of torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.pretend import autocast, streams
from tests.pretend.tensor import NAME, PINNED, compute, copy
from utils import accelerator


class _Module:
    """The counterpart of ``torch.cuda``."""

    Stream, Event = streams.Stream, streams.Event
    stream = staticmethod(streams.stream)
    current_stream = staticmethod(streams.current_stream)
    synchronize = staticmethod(streams.synchronize)

    def is_available(self) -> bool:
        return True

    def is_initialized(self) -> bool:
        return True

    def _is_in_bad_fork(self) -> bool:
        return False

    def device_count(self) -> int:
        return 1

    def current_device(self) -> int:
        return 0

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    def manual_seed(self, seed: int) -> None:
        """Does nothing: the CPU's generator is used for the pretend device too."""

    manual_seed_all = manual_seed


@cache
def register() -> torch.device:
    """Registers the device in this process. This must happen before the first backward pass, because torch then starts a thread
    for each device."""
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

    _setup_privateuseone_for_python_backend(NAME, backend_module=_Module())
    library = torch.library.Library("aten", "IMPL")
    for operation in _factories():
        library.impl(
            operation, lambda *args, operation=operation, **kwargs: _made(operation, args, kwargs), "PrivateUse1"
        )
    # torch.tensor() copies with this operation, whose arguments are in the opposite order.
    library.impl(
        "_copy_from", lambda source, target, non_blocking=False: copy(target, source, non_blocking), "PrivateUse1"
    )
    _registered.extend([library, *autocast.register(NAME)])
    return torch.device(NAME, 0)


_registered: list[Any] = []


def _factories() -> Iterator[Any]:
    """Operations that create a tensor without tensor arguments."""
    for name in torch._C._dispatch_get_all_op_names():
        namespace, _, rest = name.partition("::")
        packet, _, overload = rest.partition(".")
        operation = (
            getattr(getattr(torch.ops.aten, packet, None), overload or "default", None) if namespace == "aten" else None
        )
        if operation is None:
            continue
        arguments, returned = operation._schema.arguments, operation._schema.returns
        kinds = [str(argument.type) for argument in arguments]
        has_device = any(argument.name == "device" for argument in arguments)
        if (
            has_device
            and not any("Tensor" in kind for kind in kinds)
            and [str(each.type) for each in returned] == ["Tensor"]
        ):
            yield operation


def _made(operation: Any, args: Any, kwargs: Any) -> Tensor:
    return compute(operation, args, {**kwargs, "device": torch.device(NAME, 0)})


def _pin_memory(tensor: Tensor) -> Tensor:
    """Like ``Tensor.pin_memory`` with a GPU."""
    pinned = tensor.clone()
    setattr(pinned, PINNED, True)
    return pinned


@contextmanager
def as_accelerator() -> Iterator[torch.device]:
    """Within this context, our code finds the pretend device when it looks for a GPU."""
    device = register()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tensor, "pin_memory", _pin_memory)
        patch.setattr(accelerator, "best_device", lambda index=None: device)
        yield device
