"""Arithmetic of the plan: the split of a global batch, and the search for the largest micro-batch."""

from __future__ import annotations

import math
from collections.abc import Callable


def share_out(total: int, gpus: int, largest: int) -> tuple[int, int]:
    """Examples of a micro-batch (at most ``largest``) and accumulation for a global batch of ``total`` on ``gpus``.

    The accumulation is the smallest one that makes exactly ``total``, if it is at most twice the smallest one that fits. Else it
    is the smallest one that fits, with the next larger total: smaller micro-batches would cost the contrastive loss negatives.
    """
    fewest = math.ceil(total / (gpus * largest))
    for accumulate in range(fewest, fewest + min(fewest, 1000) + 1):
        examples, rest = divmod(total, gpus * accumulate)
        if examples and not rest:
            return examples, accumulate
    return math.ceil(total / (gpus * fewest)), fewest


def largest_that_fits(cost: Callable[[int], float], limit: float, start: int) -> int:
    """The largest number of examples whose ``cost`` is at most ``limit``, to within 2 % below; 0: not even one fits.

    A finite cost grows roughly linearly, so the next guess is where the line through two costs meets the limit. Near the limit
    costs may grow more slowly, since the allocator returns cached memory: if the guess is known to be too large, the search
    bisects instead.
    """
    known_costs: dict[int, float] = {}
    fits, too_many, examples = 0, 0, start
    while not too_many or too_many - fits > _finest(fits):
        known_costs[examples] = cost(examples)
        if known_costs[examples] <= limit:
            fits = examples
        else:
            too_many = examples
        examples = _next_guess(fits, too_many, _where_line_meets(known_costs, limit))
    return fits


def _finest(fits: int) -> int:
    """Smallest difference between two guesses."""
    return max(1, fits // 50)


def _next_guess(fits: int, too_many: int, guess: int) -> int:
    """The next number of examples, above ``fits`` and below ``too_many`` (0: unknown).

    It is the ``guess`` (0: none) if that lies between them. While ``too_many`` is unknown, it is at most four times ``fits``: the
    line through two small costs is inaccurate.
    """
    if guess:
        guess = max(guess, fits + _finest(fits))
    if not too_many:
        return min(guess or 2 * fits, 4 * fits)
    return guess if fits < guess < too_many else (fits + too_many) // 2


def _where_line_meets(costs: dict[int, float], limit: float) -> int:
    """Examples at which the line through the two finite costs nearest to ``limit`` meets it; 0: fewer than two costs."""
    near = sorted((abs(cost - limit), examples) for examples, cost in costs.items() if math.isfinite(cost))[:2]
    if len(near) < 2:
        return 0
    first, second = (examples for _, examples in near)
    slope = (costs[second] - costs[first]) / (second - first)
    return max(1, int(first + (limit - costs[first]) / slope)) if slope > 0 else 0
