"""Hard negatives for the matching loss (X²-VLM, section 3.3): sampled within the local batch, all in one vectorised step."""

from __future__ import annotations

import torch
from torch import Tensor

from models.losses import at_least_float32


def allowed_negatives(valid: Tensor, key: Tensor | None = None) -> Tensor:
    """Which rows may serve as each other's negatives, (N, N) bool, symmetric, never a row for itself.

    Args:
        valid: (N,) bool, rows that count.
        key: (N,) int64, equal for equal texts; rows with equal texts are then no negatives of each other.
    """
    allowed = valid.unsqueeze(0) & valid.unsqueeze(1)
    allowed = allowed & ~torch.eye(len(valid), dtype=torch.bool, device=valid.device)
    if key is not None:
        allowed = allowed & (key.unsqueeze(0) != key.unsqueeze(1))
    return allowed


def negative_weights(similarity: Tensor, allowed: Tensor) -> Tensor:
    """Unnormalised sampling weights (N, N): softmax over the batch plus 1e-5, zero where not allowed (as released).

    ``similarity`` (N, N) is already divided by the temperature; row i weighs the negatives of row i.
    """
    return (at_least_float32(similarity).softmax(dim=1) + 1e-5) * allowed


def sample(weights: Tensor) -> Tensor:
    """One index per row in proportion to its weights, (N,) int64; a row without any weight gives an index that is not to be
    used. No host synchronisation, no error for an empty row (``multinomial`` has both)."""
    noise = torch.empty_like(weights).exponential_()
    return (weights / noise).argmax(dim=1)
