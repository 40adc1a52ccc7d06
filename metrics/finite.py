"""Checks that scores are finite. Comparisons with NaN are false, so NaN could silently count as a hit or a miss."""

from __future__ import annotations

import numpy as np

from utils.errors import UserError


def check_finite(values: np.ndarray, what: str, *, unscored: bool = False) -> np.ndarray:
    """Returns ``values`` unchanged if all of them are finite.

    Args:
        values: scores, boxes or logits of any shape.
        what: name of the values for the error message, such as "cosine similarities".
        unscored: True to allow -inf, which marks candidates that were not scored.

    Raises:
        UserError: if a value is NaN or infinite.
    """
    is_finite = np.isfinite(values) | np.isneginf(values) if unscored else np.isfinite(values)
    if not is_finite.all():
        raise UserError(
            f"{(~is_finite).sum():,} of {values.size:,} {what} are NaN or infinite, so metrics cannot be computed",
            remedy="the weights are damaged or training diverged: use an earlier checkpoint, or "
            "evaluation.precision=fp32 if it was lower",
        )
    return values
