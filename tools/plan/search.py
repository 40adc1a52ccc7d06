"""How a global batch is shared out, and how large a micro-batch fits: arithmetic, whatever a micro-batch holds."""

from __future__ import annotations

import math
from collections.abc import Callable


def share_out(total: int, gpus: int, largest: int) -> tuple[int, int]:
    """Examples of a micro-batch, at most ``largest``, and the accumulation, for a global batch of ``total`` on ``gpus``.

    Taken is the least accumulation that makes exactly ``total``, if it is at most twice the least that fits; else the least that
    fits, with the next larger total: smaller micro-batches would leave the contrastive loss fewer negatives.
    """
    fewest = math.ceil(total / (gpus * largest))
    for accumulate in range(fewest, fewest + min(fewest, 1000) + 1):
        examples, left = divmod(total, gpus * accumulate)
        if examples and not left:
            return examples, accumulate
    return math.ceil(total / (gpus * fewest)), fewest


def largest_that_fits(cost: Callable[[int], float], limit: float, start: int) -> int:
    """The most examples whose ``cost`` is at most ``limit``, to 2 % and never too many; 0: not even one.

    A finite cost grows about in proportion to the examples, so the next try is where the line through two of them meets the
    limit. Near the limit it may grow less, since the allocator returns cached memory; where the line leads to a number that is
    known to be too large, the bracket is halved instead.
    """
    known_costs: dict[int, float] = {}
    fits, too_many, examples = 0, 0, start
    while not too_many or too_many - fits > _finest(fits):
        known_costs[examples] = cost(examples)
        if known_costs[examples] <= limit:
            fits = examples
        else:
            too_many = examples
        examples = _next_try(fits, too_many, _where_line_meets(known_costs, limit))
    return fits


def _finest(fits: int) -> int:
    """The least difference between two tries."""
    return max(1, fits // 50)


def _next_try(fits: int, too_many: int, guess: int) -> int:
    """A number above ``fits`` and below ``too_many`` (0: unknown): the ``guess`` (0: none), if it is such a number. Without a
    bracket it leads no further than to four times ``fits``: two small costs make a poor line."""
    if guess:
        guess = max(guess, fits + _finest(fits))
    if not too_many:
        return min(guess or 2 * fits, 4 * fits)
    return guess if fits < guess < too_many else (fits + too_many) // 2


def _where_line_meets(costs: dict[int, float], limit: float) -> int:
    """Examples at which the line through the two finite costs nearest to ``limit`` meets it; 0: there are no two."""
    near = sorted((abs(each - limit), examples) for examples, each in costs.items() if math.isfinite(each))[:2]
    if len(near) < 2:
        return 0
    first, second = (examples for _, examples in near)
    slope = (costs[second] - costs[first]) / (second - first)
    return max(1, int(first + (limit - costs[first]) / slope)) if slope > 0 else 0
