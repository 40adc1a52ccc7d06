"""Data parallelism: every rank holds the full model (DistributedDataParallel)."""

from __future__ import annotations

import gc
import inspect
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from engine.parallel.strategy import Parallel, copied_to_host
from utils import distributed
from utils.weight_file import save_weights


class DataParallel(Parallel):
    """Wraps the model in DDP. Without a process group, the model is not wrapped.

    DDP averages gradients over ranks. To get their sum, the loss is multiplied by the number of ranks.
    """

    needs_all_ranks = False

    def __init__(self, model: nn.Module, device: torch.device):
        super().__init__(model)
        distributed.move_from_rank_0(model, device)
        self.device, self.loss_factor = device, distributed.world_size()
        self.wrapped: nn.Module = model

    def __call__(self, batch: Any) -> Any:
        return self.wrapped(batch)

    def update_trainable(self) -> None:
        if not distributed.is_distributed():
            return
        devices = [self.device.index] if self.device.type != "cpu" else None
        # Buffers are constants in our models, so DDP need not send them. torch 2.13 renames this option.
        renamed = "forward_sync_buffers" in inspect.signature(DistributedDataParallel.__init__).parameters
        options: dict[str, Any] = {"forward_sync_buffers" if renamed else "broadcast_buffers": False}
        options["init_sync"] = False  # all ranks have received the weights of rank 0
        self.wrapped = DistributedDataParallel(self.model, device_ids=devices, gradient_as_bucket_view=True, **options)

    def release(self) -> None:
        # The hooks of the old wrapper would reduce gradients a second time. They are removed when the wrapper is
        # garbage-collected, so drop all references to it, including gradients, which are views of its buffers.
        self.wrapped = self.model
        for parameter in self.model.parameters():
            parameter.grad = None
        gc.collect()

    def synchronised(self, last: bool) -> AbstractContextManager[None]:
        if isinstance(self.wrapped, DistributedDataParallel) and not last:
            return self.wrapped.no_sync()
        return nullcontext()

    def gradient_norm(self, gradients: Sequence[Tensor]) -> Tensor:
        return nn.utils.get_total_norm(gradients)

    def full_model(self) -> AbstractContextManager[None]:
        return nullcontext()

    def full_copy(self) -> nn.Module:
        return self.model

    def copied_to_rank_0(self, states: Any) -> Any:
        return copied_to_host(states) if distributed.rank() == 0 else None

    def start_saving(self, tensors: dict[str, Tensor], folder: Path) -> Future[Any]:
        copies = copied_to_host(tensors)
        thread = ThreadPoolExecutor(1, "save")
        future = thread.submit(_save, folder, copies)
        thread.shutdown(wait=False)
        return future

    def shard_like(self, state: Tensor, parameter: Tensor) -> Tensor:
        return state


def _save(folder: Path, tensors: dict[str, Tensor]) -> None:
    folder.mkdir()
    save_weights(folder / "tensors.safetensors", tensors)
