"""The interface for strategies that share a model among ranks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from utils.distributed import full_tensor


class Parallel(ABC):
    """The model of a task, shared among the ranks of a run.

    The losses of a step are divided by counts over all ranks, so the gradient of a step is the **sum** of the gradients of all
    ranks. After the last micro-batch of a step, every trainable parameter has a gradient, which is zero if no loss depends on the
    parameter.

    Attributes:
        model: the model of the task, with the weights of rank 0. Its parameters may be DTensors, sharded over the ranks.
        loss_factor: factor on the loss before the backward pass, which compensates for averaging over ranks.
        needs_all_ranks: True if saving a checkpoint or running the model requires all ranks.
    """

    needs_all_ranks: ClassVar[bool]
    loss_factor: int

    def __init__(self, model: nn.Module):
        self.model = model

    @abstractmethod
    def __call__(self, batch: Any) -> Any:
        """Runs the forward pass of a micro-batch."""

    @abstractmethod
    def update_trainable(self) -> None:
        """Adapts to the set of trainable parameters. Called at the start, and after parameters are unfrozen."""

    def release(self) -> None:  # noqa: B027 - FSDP2 has nothing to release
        """Releases the parameters and their gradients before further parameters are unfrozen."""

    @abstractmethod
    def synchronised(self, last: bool) -> AbstractContextManager[None]:
        """Context for the forward and backward pass of a micro-batch. Gradients are summed after the ``last`` micro-batch of a
        step."""

    @abstractmethod
    def gradient_norm(self, gradients: Sequence[Tensor]) -> Tensor:
        """Returns the L2 norm of the gradients, including the shards of all ranks, as a scalar tensor."""

    @abstractmethod
    def full_model(self) -> AbstractContextManager[None]:
        """Context in which this rank holds the full model and may run it without the other ranks. Must not be used for
        training."""

    @abstractmethod
    def full_copy(self) -> nn.Module:
        """Returns the full model on every rank, for use after training. All ranks must call this method."""

    @abstractmethod
    def copied_to_rank_0(self, states: Any) -> Any:
        """Copies ``states`` (tensors in dictionaries, lists and tuples) to host memory, as full tensors. If
        :attr:`needs_all_ranks` is True, all ranks must call this method.

        Returns:
            The copy on rank 0, and None on the other ranks.
        """

    @abstractmethod
    def start_saving(self, tensors: dict[str, Tensor], folder: Path) -> Future[Any]:
        """Starts writing tensors to safetensors files in a new folder. The caller may change the tensors afterwards.

        Rank 0 must call this method. If :attr:`needs_all_ranks` is True, all ranks must call it.

        Returns:
            A future that completes when all ranks have written their tensors. It raises the exception of a rank that failed.
        """

    @abstractmethod
    def shard_like(self, state: Tensor, parameter: Tensor) -> Tensor:
        """Shards a full tensor like ``parameter``, which has the same shape."""

    def load(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Copies full tensors into the parameters and buffers with these names. All ranks must pass the same tensors.

        Raises:
            KeyError: if the model has no parameter or buffer with one of the names.
        """
        tensors = self.model.state_dict(keep_vars=True)
        with torch.no_grad():
            for name, weight in weights:
                tensors[name].copy_(self.shard_like(weight, tensors[name]))


def copied_to_host(value: Any, keep: bool = True) -> Any:
    """Copies the tensors in dictionaries, lists and tuples to host memory, as full tensors that share no memory with the
    originals.

    Args:
        value: the value to copy. If it contains DTensors, all ranks must call this function.
        keep: if False, this rank takes part in the communication but returns None.
    """
    if isinstance(value, Tensor):
        tensor = full_tensor(value.detach())
        return torch.empty_like(tensor, device="cpu").copy_(tensor) if keep else None
    if isinstance(value, dict):
        copied = {key: copied_to_host(part, keep) for key, part in value.items()}
        return copied if keep else None
    if isinstance(value, list | tuple):
        parts = [copied_to_host(part, keep) for part in value]
        return type(value)(parts) if keep else None
    return value
