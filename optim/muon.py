"""Muon for the matrices in the encoders' blocks, and AdamW for all other parameters."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from optim.config import MuonConfig
from utils import distributed

_IN_A_BLOCK = re.compile(r"\.\d+\.")


def matrices_in_blocks(model: nn.Module) -> set[str]:
    """Returns the names of the weights of all linear layers that are part of a numbered block, such as
    ``fusion.layer.0.output.dense.weight``. Embeddings, heads, the stem and tables of position biases are not among them."""
    return {
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and _IN_A_BLOCK.search(name)
    }


class MuonAndAdamW(torch.optim.Optimizer):
    """Updates the parameter groups with ``muon: True`` with Muon (Jordan et al., 2024), and the others with fused AdamW.

    Muon replaces the averaged gradient of a matrix by the nearest orthogonal matrix, so that an update changes all directions by
    about the same amount, including those with small gradients. The update is scaled to the root mean square that is typical of
    AdamW (Liu et al., arXiv:2502.16982), so both can use similar learning rates.

    Args:
        groups: the parameter groups, each with the key ``muon``.
        config: settings of Muon.
        betas, eps: settings of AdamW.

    Attributes:
        found_inf: (1,) or scalar float32, 1 if the next step must change nothing, as for torch's fused optimisers; None: 0.
    """

    found_inf: Tensor | None = None

    def __init__(self, groups: list[dict[str, Any]], config: MuonConfig, betas: tuple[float, float], eps: float):
        matrices, others = ([group for group in groups if group["muon"] == muon] for muon in (True, False))
        # Both add their settings to the groups.
        self.muon = (
            torch.optim.Muon(matrices, momentum=config.momentum, adjust_lr_fn="match_rms_adamw") if matrices else None
        )
        self.adamw = torch.optim.AdamW(others, betas=betas, eps=eps, fused=True) if others else None
        super().__init__(groups, {"fused": True})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Updates all parameters. ``closure`` must be None."""
        assert closure is None, "gradients are computed before the step"
        # Both optimisers work on the groups and states of this one, which loading a checkpoint replaces.
        if self.adamw is not None:
            self.adamw.param_groups, self.adamw.state = self._groups(muon=False), self.state
            self.adamw.found_inf = self.found_inf  # type: ignore[attr-defined]
            self.adamw.step()
        if self.muon is not None:
            self.muon.state = self.state
            self._update_matrices(self.muon)

    def _groups(self, *, muon: bool) -> list[dict[str, Any]]:
        return [group for group in self.param_groups if group["muon"] == muon]

    def _update_matrices(self, muon: torch.optim.Muon) -> None:
        """Orthogonalises each matrix on one rank, and sends it to the others. All ranks have the same gradients, and update the
        averages of all gradients."""
        updated = [
            (group, matrix)
            for group in self._groups(muon=True)
            for matrix in group["params"]
            if matrix.grad is not None
        ]
        owners = _owners([matrix for _, matrix in updated], distributed.world_size())
        for (group, matrix), owner in zip(updated, owners, strict=True):
            state = self.state[matrix]
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(matrix)
            with self._unless_skipped(matrix, state["momentum_buffer"]):
                if owner == distributed.rank():
                    muon.param_groups = [{**group, "params": [matrix]}]
                    muon.step()
                else:
                    state["momentum_buffer"].lerp_(matrix.grad, 1 - group["momentum"])
        for (_, matrix), owner in zip(updated, owners, strict=True):
            distributed.send_from(owner, [matrix])

    @contextmanager
    def _unless_skipped(self, *tensors: Tensor) -> Iterator[None]:
        """Context for changing tensors. Afterwards, they are restored if the step must change nothing, because torch's Muon does
        not know ``found_inf``. The device decides this, so that the host does not wait for it."""
        if self.found_inf is None:
            yield
            return
        before = [tensor.clone() for tensor in tensors]
        yield
        for tensor, kept in zip(tensors, before, strict=True):
            tensor.copy_(torch.where(self.found_inf > 0, kept, tensor))


def _owners(matrices: Sequence[Tensor], ranks: int) -> list[int]:
    """Returns the rank that orthogonalises each matrix. All ranks have about the same number of multiplications."""
    costs = [matrix.numel() * min(matrix.shape) for matrix in matrices]
    owners, loads = [0] * len(matrices), [0] * ranks
    for index in sorted(range(len(matrices)), key=lambda index: -costs[index]):
        owners[index] = loads.index(min(loads))
        loads[owners[index]] += costs[index]
    return owners
