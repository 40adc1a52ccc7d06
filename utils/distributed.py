"""Ranks, collectives and process groups. Without a process group, every function behaves as on a single rank."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from utils import accelerator, rank_reports
from utils.errors import PeerLostError, UserError
from utils.processes import TIMEOUT_MIN, die_with_parent
from utils.rank_variables import check_rank

T = TypeVar("T")

PEER_GONE = "the connection to another rank broke; that rank reports why it stopped"

RECORDED_COLLECTIVES = 2000
"""Number of collectives that the flight recorder keeps per rank, which covers tens of steps."""

SAVING = "saving"
"""Name of the process group in which threads write checkpoints."""

LOST_PEER = (
    *("Connection closed by peer", "Connection reset by peer", "Broken pipe"),  # gloo
    *("ncclRemoteError", "ncclSystemError", "remote process exited", "NCCL communicator was aborted"),  # NCCL
)
"""Texts in the errors of collectives after another rank has ended. NCCL's other errors, such as errors of CUDA, are different."""

TIMED_OUT = ("Timed out waiting", "collective operation timeout")
"""Texts in the errors of collectives for which another rank is late, in gloo and NCCL."""

_timeout_min = TIMEOUT_MIN
"""Minutes that ranks currently wait for each other."""

_around_waits: Callable[[], AbstractContextManager[None]] = nullcontext
"""Returns the context for each wait; set by :func:`recording_waits`."""

# Use the functions for single tensors, since those for lists of tensors copy. Newer versions of torch rename both functions.
_all_gather: Any = getattr(dist, "all_gather_single", getattr(dist, "all_gather_into_tensor", None))
_reduce_scatter: Any = getattr(dist, "reduce_scatter_single", getattr(dist, "reduce_scatter_tensor", None))


def is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    return dist.get_rank() if is_distributed() else 0


def world_size() -> int:
    return dist.get_world_size() if is_distributed() else 1


def local_size() -> int:
    """Returns the number of ranks on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", world_size())) if is_distributed() else 1


def share_of(count: int) -> range:
    """Returns this rank's contiguous share of ``count`` items. The shares of all ranks, in rank order, cover each item once."""
    return range(count * rank() // world_size(), count * (rank() + 1) // world_size())


def barrier() -> None:
    if is_distributed():
        dist.barrier()


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """Returns the element-wise sum over all ranks, without gradient."""
    if not is_distributed():
        return tensor
    total = tensor.detach().clone()
    dist.all_reduce(total)
    return total


def gather_objects(value: T) -> list[T]:
    """Returns the values of all ranks in rank order. Values must be small and picklable."""
    if not is_distributed():
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def on_rank_0(compute: Callable[[], T]) -> T:
    """Calls ``compute`` on rank 0, and returns its small and picklable result on every rank.

    Raises:
        UserError: on every rank, if ``compute`` raises it.
    """
    if not is_distributed():
        return compute()
    result: T | None = None
    error: UserError | None = None
    if rank() == 0:
        try:
            result = compute()
        except UserError as raised:
            error = raised
    result, error = gather_objects((result, error))[0]
    if error is not None:
        raise error
    return cast(T, result)


def built_on_rank_0() -> AbstractContextManager[Any]:
    """Context in which modules get weights only on rank 0. On the other ranks, their tensors have shapes but no content until
    :func:`move_from_rank_0` copies the weights."""
    return nullcontext() if rank() == 0 else torch.device("meta")


@torch.no_grad()
def move_from_rank_0(module: nn.Module, device: torch.device) -> None:
    """Moves a module to a device, and copies its parameters and buffers from rank 0 to all ranks. DTensors are left unchanged."""
    if not is_distributed():
        module.to(device)
        return
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if isinstance(tensor, DTensor):
            continue
        if rank() == 0:
            content = tensor.detach().to(device).contiguous()
        else:
            content = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
        dist.broadcast(torch.view_as_real(content) if content.is_complex() else content, 0)
        # The tensor must remain the same object, because several modules may share it.
        if not tensor.is_meta:
            tensor.data = content
            continue
        received = nn.Parameter(content, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else content.detach()
        try:
            torch.utils.swap_tensors(tensor, received)
        except RuntimeError as error:
            raise RuntimeError(f"{name} cannot be received from rank 0; does the model keep a view of it?") from error


@torch.no_grad()
def send_from(sender: int, tensors: Iterable[Tensor]) -> None:
    """Copies the contents of tensors on one rank into the tensors of the other ranks, which have the same shapes and types."""
    if is_distributed():
        for tensor in tensors:
            dist.broadcast(tensor, sender)


def received_from_rank_0(tensors: Mapping[str, Tensor], device: torch.device) -> Iterator[tuple[str, Tensor]]:
    """Yields the tensors that rank 0 passes, by name, on all ranks. On ``device``, there is only one tensor at a time."""
    (kinds, *_) = gather_objects({name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()})
    for name, (shape, dtype) in kinds.items():
        tensor = tensors[name].to(device) if rank() == 0 else torch.empty(shape, dtype=dtype, device=device)
        send_from(0, [tensor])
        yield name, tensor


def local_shard(tensor: Tensor) -> Tensor:
    """Returns this rank's shard of a DTensor, without copying it. Any other tensor is returned unchanged."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def full_tensor(tensor: Tensor) -> Tensor:
    """Gathers a full tensor from a DTensor. All ranks must call this function. Any other tensor is returned unchanged."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@contextmanager
def recording_waits(context: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
    """Context in which every wait for a gather in a forward pass is wrapped in a new ``context``, which can measure the wait."""
    global _around_waits
    before, _around_waits = _around_waits, context
    try:
        yield
    finally:
        _around_waits = before


def start_gather(tensor: Tensor) -> Callable[[], Tensor]:
    """Starts concatenating the tensors (n, ...) of all ranks along axis 0, in rank order. The result is (ranks * n, ...), and n
    must be the same on all ranks.

    The gradient is that of the sum of all ranks' losses with respect to this rank's tensor.

    Returns:
        A function that waits for the result and returns it.
    """
    if not is_distributed():
        return lambda: tensor
    local = tensor.detach().contiguous()
    gathered = local.new_empty((world_size() * len(local), *local.shape[1:]))
    transfer = _all_gather(gathered, local, async_op=True)

    def finish() -> Tensor:
        with _around_waits():
            transfer.wait()
        return cast(Tensor, _GatherTensors.apply(tensor, gathered)) if tensor.requires_grad else gathered

    return finish


class _GatherTensors(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, gathered: Tensor) -> Tensor:
        return gathered.view_as(gathered)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        local = grad.new_empty((len(grad) // world_size(), *grad.shape[1:]))
        _reduce_scatter(local, grad.contiguous())
        return local, None


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.factor, None


def scale_gradient(tensor: Tensor, factor: float) -> Tensor:
    """Returns the tensor unchanged, but multiplies its gradient by ``factor``."""
    return _ScaleGradient.apply(tensor, factor)


def set_timeout(minutes: float | None = None) -> None:
    """Changes how long ranks wait for each other. All ranks must call this function.

    Args:
        minutes: the new time; if None, the current time is applied to process groups that have been created since the last call.
    """
    global _timeout_min
    if not is_distributed():
        return
    minutes = _timeout_min if minutes is None else minutes
    if minutes < _timeout_min:
        # Otherwise, this rank could enqueue a collective with the shorter timeout while another rank, or the device of this rank,
        # is still busy with a step that may take longer.
        accelerator.synchronize()
        barrier()
    _timeout_min = minutes
    # Public since torch 2.15, which deprecates the private name; older versions have only the private name.
    change = getattr(dist, "set_timeout", None) or dist.distributed_c10d._set_pg_timeout
    for group in list(dist.distributed_c10d._world.pg_map):  # including the process groups of FSDP2's meshes
        if group.group_desc != SAVING:  # the disks of some ranks may be slower
            change(timedelta(minutes=minutes), group)


@contextmanager
def longer_timeout(minutes: float) -> Iterator[None]:
    """Context in which ranks wait for each other for at least ``minutes``, because some do more than others. All ranks must enter
    it."""
    before = _timeout_min
    set_timeout(max(minutes, before))
    yield
    set_timeout(before)


def shared_store(name: str) -> dist.Store | None:
    """Returns a key-value store that all ranks share, or None without a process group. The store has a separate connection, so
    that another thread may use it. ``name`` distinguishes it from other stores."""
    if not is_distributed():
        return None
    return dist.PrefixStore(name, dist.distributed_c10d._get_default_store().clone())  # type: ignore[attr-defined]


def record_collectives(folder: Path) -> None:
    """Configures NCCL's flight recorder to write the last collectives of each rank to ``folder/collectives_rank_<n>`` when a
    collective times out. Settings made by the user are kept. Call this function before creating the process group."""
    os.environ.setdefault("TORCH_FR_BUFFER_SIZE", str(RECORDED_COLLECTIVES))
    os.environ.setdefault("TORCH_NCCL_DUMP_ON_TIMEOUT", "1")
    prefix = os.environ.setdefault("TORCH_FR_DUMP_TEMP_FILE", str(folder.absolute() / "collectives_rank_"))
    rank_reports.report_records(prefix)


@contextmanager
def process_group(timeout_min: float = TIMEOUT_MIN, records: Path | None = None) -> Iterator[torch.device]:
    """Context in which this process is in the process group that torchrun's environment variables describe, if there is one.
    Yields this rank's device.

    The backend is NCCL with CUDA, otherwise gloo. Unless a rank fails, no rank leaves before the others.

    Args:
        timeout_min: minutes that ranks wait for each other, until :func:`set_timeout` changes this time.
        records: the folder for :func:`record_collectives`; if None, collectives are not recorded.

    Raises:
        PeerLostError: if the connection to another rank breaks, or a rank times out.
    """
    global _timeout_min
    check_rank(os.environ)
    if "TORCHELASTIC_RUN_ID" in os.environ:
        die_with_parent()  # a rank must not keep running after its launcher was killed
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    device = accelerator.best_device(local_rank)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        accelerator.disable_cudnn_attention()
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield device
        return
    if device.type == "cuda":
        if records is not None:
            record_collectives(records)
        dist.init_process_group("nccl", timeout=timedelta(minutes=timeout_min), device_id=device)
    else:
        dist.init_process_group("gloo", timeout=timedelta(minutes=timeout_min))
    _timeout_min = timeout_min
    try:
        yield device
        barrier()  # rank 0 may still be evaluating or saving when the others have finished
    except RuntimeError as error:
        if (lost := _lost_peer(error)) is not None:
            raise lost from None
        raise
    # Not done after an error, because closing the connections would stop the other ranks before this rank has reported its error.
    dist.destroy_process_group()


@contextmanager
def group_of_one(device: torch.device) -> Iterator[None]:
    """Context with a process group that contains only this process, for code that requires a process group."""
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def _lost_peer(error: RuntimeError) -> PeerLostError | None:
    """Returns the error to report if a collective or the store failed because of another rank, otherwise None."""
    text = str(error)
    if isinstance(error, dist.DistStoreError) or any(part in text for part in TIMED_OUT):
        return PeerLostError(
            f"rank {rank()} timed out waiting for another rank (train.start_timeout_min, train.step_timeout_min)",
            remedy="the rank that hangs reports it after train.stall_s seconds, and writes its stacks to its log in "
            "the run's folder",
        )
    if isinstance(error, dist.DistNetworkError) or any(part in text for part in LOST_PEER):
        return PeerLostError(PEER_GONE)
    return None
