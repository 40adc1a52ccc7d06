"""Hard negatives for the matching loss (X²-VLM, section 3.3): sampled within the local batch in one vectorised step."""

from __future__ import annotations

import torch
from torch import Tensor

from models.losses import at_least_float32


def allowed_negatives(valid: Tensor, key: Tensor | None = None) -> Tensor:
    """Mask (N, N) of the examples that may serve as each other's negatives: symmetric, False on the diagonal.

    Args:
        valid: (N,) bool, the examples that count.
        key: (N,) int64; examples with equal keys are no negatives of each other. None: all keys differ.
    """
    allowed = valid.unsqueeze(0) & valid.unsqueeze(1)
    allowed = allowed & ~torch.eye(len(valid), dtype=torch.bool, device=valid.device)
    if key is not None:
        allowed = allowed & (key.unsqueeze(0) != key.unsqueeze(1))
    return allowed


def negative_weights(similarity: Tensor, allowed: Tensor) -> Tensor:
    """Unnormalised sampling weights (N, N): softmax over the batch plus 1e-5, zero where not allowed (as released).

    ``similarity`` (N, N) is already divided by the temperature; row i weighs the negatives of example i.
    """
    return (at_least_float32(similarity).softmax(dim=1) + 1e-5) * allowed


def sample(weights: Tensor) -> Tensor:
    """Sample an index (N,) int64 for each example in proportion to its weights, ``weights`` (N, M).

    The index of an example without any weight is undefined. The host never waits, and an example without weights raises no error
    (``multinomial`` does both).
    """
    noise = torch.empty_like(weights).exponential_()
    return (weights / noise).argmax(dim=1)
