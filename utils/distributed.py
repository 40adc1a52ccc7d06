"""Ranks and collectives. Without a process group every function is the identity of one rank."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from utils.errors import UserError

T = TypeVar("T")

TIMEOUT = timedelta(hours=2)
"""How long a rank waits for the others: rank 0 may measure or save for longer than the ten minutes that NCCL has by default."""

# The forms that take one tensor; lists of them would be copied. Newer versions of torch rename both.
_all_gather: Any = getattr(dist, "all_gather_single", getattr(dist, "all_gather_into_tensor", None))
_reduce_scatter: Any = getattr(dist, "reduce_scatter_single", getattr(dist, "reduce_scatter_tensor", None))


def is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    return dist.get_rank() if is_distributed() else 0


def world_size() -> int:
    return dist.get_world_size() if is_distributed() else 1


def share_of(count: int) -> range:
    """This rank's part of ``count`` items: the parts of all ranks are in order, and hold each item exactly once."""
    return range(count * rank() // world_size(), count * (rank() + 1) // world_size())


def barrier() -> None:
    if is_distributed():
        dist.barrier()


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """The element-wise sum over ranks; no gradient flows."""
    if not is_distributed():
        return tensor
    total = tensor.detach().clone()
    dist.all_reduce(total)
    return total


def gather_objects(value: T) -> list[T]:
    """One small picklable value of each rank, in order of rank."""
    if not is_distributed():
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def gather_rows(tensor: Tensor) -> Tensor:
    """Rows of all ranks, in order of rank: (n, ...) -> (world * n, ...); every rank has the same n.

    Gradient: exact. The gradient of the sum of all ranks' losses with respect to this rank's rows comes back.
    """
    return start_gather(tensor)()


def start_gather(tensor: Tensor) -> Callable[[], Tensor]:
    """:func:`gather_rows` in the background: what comes back waits for the rows and gives them."""
    if not is_distributed():
        return lambda: tensor
    own = tensor.detach().contiguous()
    rows = own.new_empty((world_size() * len(own), *own.shape[1:]))
    sent = _all_gather(rows, own, async_op=True)

    def finish() -> Tensor:
        sent.wait()
        return cast(Tensor, _GatherRows.apply(tensor, rows)) if tensor.requires_grad else rows

    return finish


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, rows: Tensor) -> Tensor:
        return rows.view_as(rows)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        own = grad.new_empty((len(grad) // world_size(), *grad.shape[1:]))
        _reduce_scatter(own, grad.contiguous())
        return own, None


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.factor, None


def scale_gradient(tensor: Tensor, factor: float) -> Tensor:
    """The same values; the gradient that flows back is multiplied by ``factor``."""
    return _ScaleGradient.apply(tensor, factor)


@contextmanager
def process_group() -> Iterator[torch.device]:
    """Join the process group that torchrun's environment describes, if any; yields this rank's device.

    NCCL where CUDA is available, gloo elsewhere. No rank leaves before the others, but by an error. The environment is read
    here, when a job starts, and nowhere else.
    """
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
        # cuDNN's attention is planned on the host for each new shape, and texts and candidates come in thousands of shapes.
        torch.backends.cuda.enable_cudnn_sdp(False)
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield device
        return
    if device.type == "cuda":
        dist.init_process_group("nccl", timeout=TIMEOUT, device_id=device)
    else:
        dist.init_process_group("gloo", timeout=TIMEOUT)
    try:
        yield device
        barrier()  # rank 0 may still measure or save when the others have nothing left to do
    except RuntimeError as error:
        if _peer_is_gone(error):
            raise UserError("the connection to another rank broke; that rank tells why it stopped") from None
        raise
    # Not after an error: closing the connections would stop the other ranks before this one has told its own.
    dist.destroy_process_group()


def _peer_is_gone(error: RuntimeError) -> bool:
    return any(part in str(error) for part in ("Connection closed by peer", "Connection reset by peer", "Broken pipe"))
