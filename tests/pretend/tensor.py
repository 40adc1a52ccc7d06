"""Tensors on a pretend device. Their numbers are in the host's memory, but they fail and block in the same cases as a GPU's
tensors.

An operation that mixes devices raises an error. An operation for which the host would wait is recorded, with the line of our code
that caused it. An operation raises an error if it uses a tensor that another stream has not finished writing.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tests.pretend.streams import LastWrite, current_stream

NAME = "pretend"
ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
CPU = torch.device("cpu")

aten = torch.ops.aten

WAITS = {
    aten._local_scalar_dense.default: "reads a number",
    aten.equal.default: "reads whether tensors are equal",
    aten.nonzero.default: "counts what is not zero",
    aten.masked_select.default: "counts what a mask selects",
    aten.repeat_interleave.Tensor: "counts repetitions",
    aten.multinomial.default: "checks probabilities",
    aten.bincount.default: "looks for the greatest number",
    aten._unique2.default: "counts unique numbers",
    aten.unique_dim.default: "counts unique numbers",
    aten.unique_consecutive.default: "counts unique numbers",
}
"""Operations that block the host of a GPU, in addition to copies and to indexing with masks."""

INDEXED = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}

PINNED = "_pretend_pinned"
"""Attribute of host tensors in page-locked memory, which the device can copy without blocking the host."""


class CodeLocation(NamedTuple):
    """Where our code calls torch: the file, and the outermost function or method. Both are "" inside a backward pass."""

    file: str
    function: str


class Wait(NamedTuple):
    """A wait of the host for the device: the reason (``what``), the location in our code, and the line."""

    what: str
    location: CodeLocation
    line: int


class Computed(NamedTuple):
    """An operation of a forward pass, and the dtypes of its floating-point operands."""

    operation: str
    dtypes: tuple[torch.dtype, ...]
    location: CodeLocation


_waits: list[list[Wait]] = []
_computed: list[list[Computed]] = []
"""Stacks of lists, one list for each active recording. Entries from all threads are added to the innermost list."""


@contextmanager
def _recording(lists: list[list[Any]]) -> Iterator[list[Any]]:
    lists.append([])
    try:
        yield lists[-1]
    finally:
        lists.pop()


def recorded_waits() -> AbstractContextManager[list[Wait]]:
    """Yields the list of the host's waits for the device in this context."""
    return _recording(_waits)


def recorded_operations() -> AbstractContextManager[list[Computed]]:
    """Yields the list of the forward pass operations in this context."""
    return _recording(_computed)


def waits_for_device(what: str) -> None:
    """Records that the host waits until the device has finished all enqueued operations."""
    if _waits:
        _waits[-1].append(Wait(what, *_code_location()))
    current_stream().synchronize()


def _code_location() -> tuple[CodeLocation, int]:
    """The innermost location in our code, with its line."""
    frame = sys._getframe()
    while frame is not None:
        if (file := _path_in_our_code(frame.f_code.co_filename)) is not None:
            return CodeLocation(file, frame.f_code.co_qualname.split(".<locals>")[0]), frame.f_lineno
        frame = frame.f_back
    return CodeLocation("", ""), 0


@cache
def _path_in_our_code(name: str) -> str | None:
    path = Path(name)
    pretends = path.parent == HERE and not path.name.startswith("test_")
    ours = path.is_relative_to(ROOT) and "site-packages" not in path.parts and not pretends
    return str(path.relative_to(ROOT)) if ours else None


class PretendTensor(Tensor):
    """A tensor whose numbers are in ``host``; ``last_write`` is the operation that wrote them."""

    host: Tensor
    last_write: LastWrite

    @staticmethod
    def __new__(cls, host: Tensor, last_write: LastWrite) -> PretendTensor:
        made = Tensor._make_wrapper_subclass(
            cls,
            host.shape,
            strides=host.stride(),
            storage_offset=host.storage_offset(),
            dtype=host.dtype,
            device=torch.device(NAME, 0),
        )
        made.host, made.last_write = host, last_write
        return made

    def __repr__(self) -> str:
        return f"pretend {self.host!r}"

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def __tensor_flatten__(self) -> tuple[list[str], LastWrite]:
        """Marks a wrapper, so that ``Module.to`` keeps a parameter shared between modules."""
        return ["host"], self.last_write

    @staticmethod
    def __tensor_unflatten__(parts: dict[str, Tensor], last_write: LastWrite, *sizes: Any) -> PretendTensor:
        return PretendTensor(parts["host"], last_write)

    @classmethod
    def __torch_dispatch__(cls, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(operation, args, kwargs or {})


def compute(operation: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """The result of an operation with at least one tensor on the pretend device, or whose result is created there.

    Raises:
        RuntimeError: if the operation mixes devices, or uses a tensor that another stream writes without waiting for it.
    """
    if operation is aten.copy_.default:
        return copy(*args, **kwargs)
    if operation is aten.record_stream.default:
        args[0].last_write.kept_for.add(args[1].stream_id)
        return None
    if torch.Tag.inplace_view in operation.tags:
        raise NotImplementedError(f"{operation}: the shape of a pretend tensor cannot be changed in place")
    stream = current_stream()
    ours: dict[int, PretendTensor] = {}  # by the host tensor inside
    others: list[Tensor] = []

    def on_host(value: Any) -> Any:
        if isinstance(value, PretendTensor):
            stream.require(value.last_write, operation)
            ours[id(value.host)] = value
            return value.host
        if isinstance(value, Tensor):
            others.append(value)
        elif isinstance(value, list | tuple):
            return [on_host(each) for each in value]
        return CPU if isinstance(value, torch.device) else value

    host_args, host_kwargs = on_host(args), {name: on_host(value) for name, value in kwargs.items()}
    # As on a GPU, a 0-dimensional tensor may be on the host.
    if ours and (there := next((tensor for tensor in others if tensor.dim() > 0), None)) is not None:
        raise RuntimeError(f"{operation}: a tensor {tuple(there.shape)} is on {there.device}, another one on {NAME}:0")
    to_host = kwargs.get("device") is not None and torch.device(kwargs["device"]).type == "cpu"
    if what := _wait(operation, host_args, to_host):
        waits_for_device(what)
    last_write = next(iter(ours.values())).last_write if _is_view(operation) else LastWrite(stream, stream.enqueue())

    def wrapped(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return type(value)(map(wrapped, value))
        if not isinstance(value, Tensor) or to_host:
            return value
        if (tensor := ours.get(id(value))) is not None:  # written in place
            tensor.last_write.stream, tensor.last_write.number = last_write.stream, last_write.number
            return tensor
        return PretendTensor(value, last_write)

    if _computed and torch._C._current_graph_task_id() == -1:
        dtypes = [each.dtype for each in (*ours.values(), *others) if each.is_floating_point()]
        _computed[-1].append(Computed(operation.name(), tuple(dtypes), _code_location()[0]))
    if operation is aten.native_dropout.default:
        return wrapped(_dropout(*host_args))
    return wrapped(operation(*host_args, **host_kwargs))


def _wait(operation: Any, args: Any, to_host: bool) -> str | None:
    """The reason why an operation blocks the host, or None if it does not."""
    if operation is aten._to_copy.default and to_host:
        return "copies to the host"
    if operation in INDEXED and any(
        index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
    ):
        return "counts what a mask selects"
    return WAITS.get(operation)


@cache
def _is_view(operation: Any) -> bool:
    returned = operation._schema.returns
    return bool(returned) and returned[0].alias_info is not None and not returned[0].alias_info.is_write


def _dropout(states: Tensor, rate: float, train: bool | None) -> tuple[Tensor, Tensor]:
    """``native_dropout`` with the CPU's random numbers, in cases where torch does not call it."""
    kept = torch.empty_like(states).bernoulli_(1 - rate)
    return states * kept.div(1 - rate), kept.bool()


def copy(target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    """``target.copy_(source)`` between any two devices."""
    stream = current_stream()
    for tensor in (target, source):
        if isinstance(tensor, PretendTensor):
            stream.require(tensor.last_write, aten.copy_.default)
    if not isinstance(target, PretendTensor):
        assert isinstance(source, PretendTensor)
        if non_blocking and hasattr(target, PINNED):
            stream.copy_to_host(target, source.host)
            return target
        waits_for_device("copies to the host")
        return target.copy_(source.host)
    if not isinstance(source, PretendTensor) and not (non_blocking and hasattr(source, PINNED)):
        waits_for_device("copies from the host")
    target.host.copy_(source.host if isinstance(source, PretendTensor) else source)
    target.last_write.stream, target.last_write.number = stream, stream.enqueue()
    return target
