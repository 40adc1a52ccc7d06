"""Determines which values in ``metrics.jsonl`` are losses."""

from __future__ import annotations

import re

MEMORY = re.compile(r"memory|_gib\b|_bytes\b", re.I)
NOT_A_LOSS = re.compile(r"(step_s|elapsed_s|data_wait|utilisation|[a-z]+_per_s)$|lr/|ranks/")
"""Names of times, rates and learning rates."""
UPDATE_VALUES = ("grad_norm", "loss_scale")


def is_training_value(name: str) -> bool:
    """Returns True if a value is a loss, or describes the update, like the gradient norm."""
    return not NOT_A_LOSS.match(name) and not MEMORY.search(name)


def is_loss(name: str) -> bool:
    return is_training_value(name) and name not in UPDATE_VALUES
