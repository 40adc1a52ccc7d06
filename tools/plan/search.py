"""The arithmetic of the plan: splits a global batch, and searches for the largest micro-batch."""

from __future__ import annotations

import math
from collections.abc import Callable


def divide_batch(total: int, gpus: int, largest: int) -> tuple[int, int]:
    """Returns the micro-batch size (at most ``largest``) and the accumulation for a global batch of ``total`` on ``gpus``.

    The accumulation is the smallest that yields exactly ``total``, if it is at most twice the smallest accumulation that fits.
    Otherwise it is the smallest that fits, with the next larger total, because smaller micro-batches would reduce the number of
    negatives in the contrastive loss.
    """
    minimum = math.ceil(total / (gpus * largest))
    for accumulate in range(minimum, minimum + min(minimum, 1000) + 1):
        examples, rest = divmod(total, gpus * accumulate)
        if examples and not rest:
            return examples, accumulate
    return math.ceil(total / (gpus * minimum)), minimum


def largest_that_fits(cost: Callable[[int], float], limit: float, start: int) -> int:
    """Returns the largest number of examples whose ``cost`` is at most ``limit``; it may be up to 2% too low. Returns 0 if not
    even one example fits.

    A finite cost grows roughly linearly, so the next guess is where the line through two costs meets the limit. Near the limit,
    costs may grow more slowly, because the allocator releases cached memory. If the guess is known to be too large, the search
    falls back to bisection.
    """
    known_costs: dict[int, float] = {}
    fits, too_many, examples = 0, 0, start
    while not too_many or too_many - fits > _resolution(fits):
        known_costs[examples] = cost(examples)
        if known_costs[examples] <= limit:
            fits = examples
        else:
            too_many = examples
        examples = _next_guess(fits, too_many, _where_line_meets(known_costs, limit))
    return fits


def _resolution(fits: int) -> int:
    """Returns the smallest difference between two guesses."""
    return max(1, fits // 50)


def _next_guess(fits: int, too_many: int, guess: int) -> int:
    """Returns the next number of examples, above ``fits`` and below ``too_many`` (0 if unknown).

    This is the ``guess`` (0 if there is none) if it lies between ``fits`` and ``too_many``. While ``too_many`` is unknown, the
    result is at most four times ``fits``, because the line through two small costs is inaccurate.
    """
    if guess:
        guess = max(guess, fits + _resolution(fits))
    if not too_many:
        return min(guess or 2 * fits, 4 * fits)
    return guess if fits < guess < too_many else (fits + too_many) // 2


def _where_line_meets(costs: dict[int, float], limit: float) -> int:
    """Returns where the line through the two finite costs nearest to ``limit`` meets ``limit``, or 0 if there are
    fewer than two costs."""
    near = sorted((abs(cost - limit), examples) for examples, cost in costs.items() if math.isfinite(cost))[:2]
    if len(near) < 2:
        return 0
    first, second = (examples for _, examples in near)
    slope = (costs[second] - costs[first]) / (second - first)
    return max(1, int(first + (limit - costs[first]) / slope)) if slope > 0 else 0
