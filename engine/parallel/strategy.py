"""The interface of the two ways in which ranks share a model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from utils.distributed import whole_tensor


class Parallel(ABC):
    """The model of a task on the ranks of a run.

    The losses of a step are divided by counts over all ranks, so the gradient of a step is the **sum** of the gradients of all
    ranks. After the last micro-batch of a step, every parameter that trains has its gradient: zeros where no loss depends on it.

    Attributes:
        model: the model of the task, with the weights of rank 0. Its parameters may be DTensors, of which a rank holds a part.
        loss_factor: factor on a loss before its backward pass. It undoes an average over ranks.
        needs_all_ranks: True if a rank needs the others to save a checkpoint or to run the model.
    """

    needs_all_ranks: ClassVar[bool]
    loss_factor: int

    def __init__(self, model: nn.Module):
        self.model = model

    @abstractmethod
    def __call__(self, batch: Any) -> Any:
        """The forward pass of a micro-batch in a step."""

    def follow(self) -> None:  # noqa: B027 - FSDP2 needs no update
        """Adapt to which parameters train; called at the start, and when others join them."""

    def release(self) -> None:  # noqa: B027 - FSDP2 has nothing to release
        """Let go of the parameters and their gradients, before others join."""

    @abstractmethod
    def synchronised(self, last: bool) -> AbstractContextManager[None]:
        """Context of the forward and backward pass of a micro-batch; ``last``: of a step, after which gradients are summed."""

    @abstractmethod
    def gradient_norm(self, gradients: Sequence[Tensor]) -> Tensor:
        """The L2 norm (), over the parts of all ranks, of gradients."""

    @abstractmethod
    def whole_model(self) -> AbstractContextManager[None]:
        """Context in which this rank holds the whole model, and may run it without the others. Nothing trains in it."""

    @abstractmethod
    def whole_copy(self) -> nn.Module:
        """The whole model on every rank, for use after training; called by all ranks."""

    @abstractmethod
    def gathered(self, states: Any) -> Any:
        """A copy of ``states`` (tensors in dictionaries, lists and tuples) with whole tensors in host memory; called by all
        ranks.

        Returns:
            The copy on rank 0; None on other ranks.
        """

    @abstractmethod
    def start_saving(self, tensors: dict[str, Tensor], folder: Path) -> Future[Any]:
        """Start to write tensors, which may change afterwards, to safetensors files in a folder, which is created; called by rank
        0, and by all ranks if :attr:`needs_all_ranks`.

        Returns:
            Done when all ranks have written; it raises what one of them could not do.
        """

    @abstractmethod
    def like(self, state: Tensor, parameter: Tensor) -> Tensor:
        """``state``, a whole tensor in the shape of a parameter, distributed like it."""

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Copy whole tensors into the parameters and buffers with these names.

        Raises:
            KeyError: if the model lacks one of them.
        """
        own = self.model.state_dict(keep_vars=True)
        with torch.no_grad():
            for name, weight in weights.items():
                own[name].copy_(self.like(weight, own[name]))


def copied_to_host(value: Any, keep: bool = True) -> Any:
    """A copy in which the tensors in dictionaries, lists and tuples are whole, in host memory, and share none with the original.

    Args:
        value: with DTensors, all ranks must call this.
        keep: if False, take part, but return only None.
    """
    if isinstance(value, Tensor):
        tensor = whole_tensor(value.detach())
        return torch.empty_like(tensor, device="cpu").copy_(tensor) if keep else None
    if isinstance(value, dict):
        copied = {key: copied_to_host(part, keep) for key, part in value.items()}
        return copied if keep else None
    if isinstance(value, list | tuple):
        parts = [copied_to_host(part, keep) for part in value]
        return type(value)(parts) if keep else None
    return value
