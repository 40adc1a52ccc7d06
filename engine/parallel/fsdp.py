"""Sharded data parallelism: every rank holds a shard of the parameters, gradients and optimiser states (FSDP2).

Each block of the image and text encoders is sharded separately: a rank gathers the parameters of a block when the block runs, and
frees them afterwards. With bf16, matrices are gathered in bf16. Autocast would cast them anyway, and would keep the copies for
the backward pass, so the results are the same, and ranks send and hold half the bytes. The other parameters of a block, such as
those of norms, are used in float32. They take little memory, so every rank holds them.

All parameters outside these blocks form one group, which is gathered once per micro-batch: the fusion encoder, which runs once
per stream (type of training data), the word embeddings and the heads. Modules that share or read each other's parameters
therefore need no special handling.

Scalar parameters, such as the temperature, cannot be sharded, so every rank holds them, too. The gradients of all replicated
parameters are summed explicitly.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.storage import WriteResult
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from engine.config import ShardingConfig
from engine.parallel.strategy import Parallel, copied_to_host
from optim.setup import encoders_in
from utils import distributed
from utils.distributed import full_tensor, local_shard
from utils.errors import UserError, reason_of
from utils.tensors import on_meta

MATRICES = (nn.Linear, nn.Conv2d, nn.MultiheadAttention)
"""Modules whose parameters autocast casts to a lower precision wherever they are used."""


class Sharded(Parallel):
    """Shards the model with FSDP2 over all ranks, or over groups of ranks. The matrices in blocks are gathered in
    ``gathered_dtype``; if it is None, in their own precision.

    By default, FSDP2 averages gradients over ranks. We make it sum them, because losses are already divided by counts over all
    ranks.
    """

    needs_all_ranks = True
    loss_factor = 1

    def __init__(
        self,
        model: nn.Module,
        device: torch.device,
        sharding: ShardingConfig,
        gathered_dtype: torch.dtype | None = None,
    ):
        super().__init__(model)
        self.device, self.copies, self._meta_copy = device, sharding.replicate, on_meta(model, model)
        mesh = init_device_mesh(
            device.type, (sharding.replicate, sharding.shard), mesh_dim_names=("replicate", "shard")
        )
        self.mesh = mesh if self.copies > 1 else mesh["shard"]
        distributed.set_timeout()  # torch gives the groups of the mesh a short timeout
        self.saving_group = dist.new_group(backend="gloo", group_desc=distributed.SAVING)
        """Process group for the threads that write checkpoints while training continues."""
        replicated, policy = replicated_in(model, gathered_dtype), policy_of(gathered_dtype)
        for encoder in encoders_in(model):
            for block in encoder.blocks_to_shard:
                # One by one, since all blocks together may not fit into a GPU's memory.
                distributed.move_from_rank_0(block, device)
                fully_shard(block, mesh=self.mesh, mp_policy=policy, ignored_params=replicated)
        distributed.move_from_rank_0(model, device)
        fully_shard(model, mesh=self.mesh, reshard_after_forward=False, ignored_params=replicated)
        for method in getattr(model, "forward_methods", ()):
            register_fsdp_forward_method(model, method)
        for group in self._groups():
            group.set_gradient_divide_factor(1.0)
            group.set_force_sum_reduction_for_comms(True)
        # FSDP2 treats the first module that runs as the root module, even if it is a submodule. Make the model the root module.
        cast(FSDPModule, model).unshard()
        cast(FSDPModule, model).reshard()

    def __call__(self, batch: Any) -> Any:
        return self.model(batch)

    def update_trainable(self) -> None:
        # When FSDP2 gathers a group outside of a forward pass, it checks again which parameters of the group are trainable.
        # Otherwise, it would not sum the gradients of a group that was frozen before in the precision of the policy.
        for module in self._groups():
            module.unshard()
            module.reshard()

    @contextmanager
    def synchronised(self, last: bool) -> Iterator[None]:
        # Gradients are reduce-scattered after each micro-batch, since keeping unsharded gradients would need more memory.
        # Replicas of the model all-reduce their gradients after the last micro-batch only.
        cast(FSDPModule, self.model).set_requires_all_reduce(last)
        yield
        if last:
            self._complete_gradients()

    def _complete_gradients(self) -> None:
        """Sums the gradients of replicated parameters, and sets missing gradients to zero, as DDP does. Otherwise, AdamW would
        skip parameters without a gradient."""
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        for parameter in trained:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        local = [each.grad for each in trained if each.grad is not None and not isinstance(each, DTensor)]
        if local:
            total = torch.cat([gradient.flatten() for gradient in local])
            dist.all_reduce(total)
            for gradient, summed in zip(local, total.split([each.numel() for each in local]), strict=True):
                gradient.copy_(summed.view_as(gradient))

    def gradient_norm(self, gradients: Sequence[Tensor]) -> Tensor:
        norms = [
            nn.utils.get_total_norm([local_shard(each) for each in gradients if isinstance(each, DTensor) is sharded])
            for sharded in (True, False)
        ]
        sharded_square, scalar_square = (norm.square() for norm in norms)
        # The sum is over all ranks, so that the norm is bitwise equal in all replicas of the model.
        return (distributed.sum_over_ranks(sharded_square) / self.copies + scalar_square).sqrt()

    @contextmanager
    def full_model(self) -> Iterator[None]:
        for module in self._groups():
            module.set_reshard_after_forward(False, recurse=False)
            module.unshard()
        try:
            yield
        finally:
            for module in self._groups():
                module.set_reshard_after_forward(module is not self.model, recurse=False)
                module.reshard()

    def full_copy(self) -> nn.Module:
        model = self._meta_copy.to_empty(device=self.device)
        parameters = dict(self.model.named_parameters())
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(full_tensor(parameters[name]))
            for buffer, source in zip(model.buffers(), self.model.buffers(), strict=True):
                buffer.copy_(source)
        return model.train(self.model.training)

    def copied_to_rank_0(self, states: Any) -> Any:
        return copied_to_host(states, keep=distributed.rank() == 0)

    def start_saving(self, tensors: dict[str, Tensor], folder: Path) -> Future[Any]:
        if self.device.type == "cpu":  # older torch versions do not copy tensors that are already in host memory
            tensors = {name: tensor.clone() for name, tensor in tensors.items()}
        saving = dcp.async_save(tensors, storage_writer=ShardWriter(folder), process_group=self.saving_group)
        assert isinstance(saving, Future)
        saved: Future[None] = Future()
        saving.add_done_callback(partial(_complete, saved))
        return saved

    def shard_like(self, state: Tensor, parameter: Tensor) -> Tensor:
        if not isinstance(parameter, DTensor) or isinstance(state, DTensor):
            return state
        # Every rank has the full tensor and selects its shard without communication.
        full = state.to(parameter.device)
        shards = distribute_tensor(full, parameter.device_mesh, parameter.placements, src_data_rank=None)
        return DTensor.from_local(
            shards.to_local().clone(),
            parameter.device_mesh,
            parameter.placements,
            run_check=False,
            shape=parameter.shape,
            stride=parameter.stride(),
        )

    def _groups(self) -> list[FSDPModule]:
        """Returns the modules whose parameters are gathered together, starting with the model."""
        return [module for module in self.model.modules() if isinstance(module, FSDPModule)]


def replicated_in(model: nn.Module, gathered_dtype: torch.dtype | None) -> set[nn.Parameter]:
    """Returns the parameters that every rank holds: scalars and, if the matrices in blocks are gathered in a lower precision, the
    other parameters in blocks."""
    replicated = {parameter for parameter in model.parameters() if parameter.dim() == 0}
    if gathered_dtype is not None:
        for block in (block for encoder in encoders_in(model) for block in encoder.blocks_to_shard):
            layers = [part for part in block.modules() if isinstance(part, MATRICES)]
            replicated |= set(block.parameters())
            replicated -= {parameter for layer in layers for parameter in layer.parameters(recurse=False)}
    return replicated


def policy_of(gathered_dtype: torch.dtype | None) -> MixedPrecisionPolicy:
    """Returns FSDP2's policy for blocks that are gathered in this precision; if None, in the precision of the parameters.
    Gradients are summed in float32, and autocast alone decides in which precision modules compute."""
    reduced = None if gathered_dtype is None else torch.float32
    return MixedPrecisionPolicy(gathered_dtype, reduced, cast_forward_inputs=False)


class ShardWriter(dcp.HuggingFaceStorageWriter):
    """Writes each rank's shard of the tensors to a safetensors file in ``folder``. The save fails on all ranks if a rank cannot
    write its shard, or if rank 0 does not see the shard of another rank."""

    def __init__(self, folder: Path):
        # DCP ignores errors in all but the first of its threads.
        super().__init__(str(folder), save_distributed=True, thread_count=1)
        # Otherwise, DCP would copy from a thread whose current device is GPU 0, whichever GPU this rank uses.
        self.per_thread_copy_ahead = 0
        self.folder = folder

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Checks, on rank 0, the shards that the ranks have written."""
        super().finish(metadata, results)
        for rank, written in enumerate(results):
            for name in sorted({result.storage_data.relative_path for result in written}):
                if not (self.folder / name).is_file():
                    raise UserError(
                        f"rank 0 does not see {name}, which rank {rank} has written",
                        remedy="--output must be on a disk that all nodes share",
                    )


def _complete(saved: Future[None], saving: Future[Any]) -> None:
    """Completes ``saved`` with the outcome of ``saving``."""
    error = saving.exception()
    if error is None:
        saved.set_result(None)
    else:
        saved.set_exception(cause_of(error))


def cause_of(error: BaseException) -> Exception:
    """Returns the cause of an error of DCP, with the rank that it occurred on. DCP's own exception is not an ``Exception``, so
    handlers of errors would miss it."""
    if isinstance(error, CheckpointException) and error.failures:
        rank, (cause, _) = next(iter(error.failures.items()))
        return cause if isinstance(cause, UserError) else RuntimeError(f"rank {rank}: {reason_of(cause)}")
    return error if isinstance(error, Exception) else RuntimeError(reason_of(error))


@dataclass(frozen=True)
class Groups:
    """Sizes of the groups of parameters that FSDP2 gathers, in bytes.

    Attributes:
        rest: parameters that stay gathered during a micro-batch.
        blocks: for each sharded block, the parameters that are gathered while the block runs.
        replicated: trainable parameters that are not sharded.
    """

    rest: int
    blocks: tuple[int, ...]
    replicated: int

    @property
    def peak(self) -> int:
        """Peak size of the gathered parameters: ``rest``, the current block, and the next block, which is prefetched."""
        return self.rest + sum(sorted(self.blocks)[-2:])

    @staticmethod
    def of(model: nn.Module, *, gathered_dtype: torch.dtype | None = None, trained: bool = False) -> Groups:
        """Computes the groups of a model that is not sharded yet. If ``trained`` is True, counts only parameters that require
        gradients."""
        replicated = replicated_in(model, gathered_dtype)
        blocks = [list(block.parameters()) for encoder in encoders_in(model) for block in encoder.blocks_to_shard]
        in_blocks = {parameter for block in blocks for parameter in block}

        def size(parameters: Iterable[nn.Parameter], dtype: torch.dtype | None = None) -> int:
            counted = [each for each in parameters if each.requires_grad or not trained]
            return sum(each.numel() * (dtype or each.dtype).itemsize for each in counted)

        return Groups(
            size(each for each in model.parameters() if each not in in_blocks | replicated),
            tuple(size((each for each in block if each not in replicated), gathered_dtype) for block in blocks),
            size(each for each in replicated if each.requires_grad),
        )
