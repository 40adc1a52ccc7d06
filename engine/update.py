"""Updates the parameters at the end of a step. The gradient is clipped, and the update is skipped if a loss or the gradient is
not finite."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.tensor.experimental import implicit_replication

from engine.parallel.strategy import Parallel
from engine.precision import Precision
from utils.distributed import local_shard


@dataclass(frozen=True)
class GuardedUpdate:
    """Updates parameters without making the host wait for the device.

    Attributes:
        optimizer: the optimiser.
        precision: precision of the run, whose loss scaler is used if it is enabled.
        parameters: the parameters to update.
        clip_grad_norm: maximum norm of the gradient; None for no clipping.
        parallel: how ranks share the gradients.
    """

    optimizer: torch.optim.Optimizer
    precision: Precision
    parameters: Sequence[nn.Parameter]
    clip_grad_norm: float | None
    parallel: Parallel

    def clip(self) -> Tensor:
        """Clips the gradient if ``clip_grad_norm`` is set. Returns the norm before clipping."""
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norm = self.parallel.gradient_norm(gradients)
        if self.clip_grad_norm is not None:
            factor = (self.clip_grad_norm / (norm + 1e-6)).clamp(max=1)  # as in torch.nn.utils.clip_grad_norm_
            torch._foreach_mul_([local_shard(each) for each in gradients], factor)
        return norm

    def force_skip_if(self, not_finite: Tensor) -> None:
        """Makes the loss scaler skip the step if ``not_finite`` is True. This is needed because a loss can be infinite while its
        gradient is finite."""
        first = next(p.grad for p in self.parameters if p.grad is not None)
        first.add_(torch.where(not_finite, torch.nan, 0.0))

    def step_unless(self, not_finite: Tensor) -> None:
        """Updates the parameters unless ``not_finite`` is True. The host waits for the device only if the optimiser has no skip
        flag (apex)."""
        if self.precision.scaler.is_enabled():
            self.precision.scaler.step(self.optimizer)
            self.precision.scaler.update()
        elif self.optimizer.defaults.get("fused"):
            # Torch's fused kernels read this flag on the device; the loss scaler uses the same mechanism.
            self.optimizer.found_inf = not_finite.float()  # type: ignore[attr-defined]
            with implicit_replication():  # a group may contain both sharded and replicated parameters
                self.optimizer.step()
        elif not not_finite:
            self.optimizer.step()
