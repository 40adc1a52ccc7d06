"""Muon for the matrices in the encoders' blocks, and AdamW for all other parameters."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from optim.config import MuonConfig

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
    """Updates the parameter groups with ``muon: True`` with Muon (Jordan et al., 2024), and the others with AdamW.

    Muon replaces the averaged gradient of a matrix by the nearest orthogonal matrix, so that an update changes all directions by
    the same amount, including those with small gradients. The update is scaled to the root mean square that is typical of AdamW
    (Liu et al., arXiv:2502.16982), so both can use similar learning rates.

    Args:
        groups: the parameter groups, each with the key ``muon``.
        config: settings of Muon.
        betas, eps: settings of AdamW.
    """

    def __init__(self, groups: list[dict[str, Any]], config: MuonConfig, betas: tuple[float, float], eps: float):
        matrices, others = ([group for group in groups if group["muon"] == muon] for muon in (True, False))
        self.parts: dict[bool, torch.optim.Optimizer] = {}
        """Muon (True) and AdamW (False), if they have parameters. They add their settings to the groups."""
        if matrices:
            self.parts[True] = torch.optim.Muon(matrices, momentum=config.momentum, adjust_lr_fn="match_rms_adamw")
        if others:
            self.parts[False] = torch.optim.AdamW(others, betas=betas, eps=eps, fused=True)
        super().__init__(groups, {})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Updates all parameters. ``closure`` must be None."""
        assert closure is None, "gradients are computed before the step"
        for muon, part in self.parts.items():
            # The parts work on the groups and states of this optimiser, which loading a checkpoint replaces.
            part.param_groups, part.state = [group for group in self.param_groups if group["muon"] == muon], self.state
            part.step()
