"""How a step's rows are shared out, and how many fit: of numbers alone, whatever a micro-batch is."""

from __future__ import annotations

import math
from collections.abc import Callable


def share_out(total: int, gpus: int, largest: int) -> tuple[int, int]:
    """Rows of a micro-batch, at most ``largest``, and how many to accumulate, for ``total`` rows a step on ``gpus``: the fewest
    micro-batches that give exactly so many, if these are at most twice as many as are needed; else the next larger number of
    rows, since smaller micro-batches have fewer texts to tell an image from."""
    fewest = math.ceil(total / (gpus * largest))
    for accumulate in range(fewest, fewest + min(fewest, 1000) + 1):
        rows, left = divmod(total, gpus * accumulate)
        if rows and not left:
            return rows, accumulate
    return math.ceil(total / (gpus * fewest)), fewest


def largest_that_fits(cost: Callable[[int], float], limit: float, start: int) -> int:
    """The most rows whose ``cost`` is at most ``limit``, to 2 % and never too many; 0: not even one.

    A cost that is finite grows about in proportion to the rows, so the next try is where the line through two of them meets
    the limit. Near the limit it may grow less, since the allocator gives back what it had kept; where the line leads to what
    is known to be too many, the bracket is halved instead.
    """
    known_costs: dict[int, float] = {}
    fits, too_many, rows = 0, 0, start
    while not too_many or too_many - fits > _finest(fits):
        known_costs[rows] = cost(rows)
        if known_costs[rows] <= limit:
            fits = rows
        else:
            too_many = rows
        rows = _next_try(fits, too_many, _where_line_meets(known_costs, limit))
    return fits


def _finest(fits: int) -> int:
    """By how many rows two tries differ at least."""
    return max(1, fits // 50)


def _next_try(fits: int, too_many: int, guess: int) -> int:
    """More rows than ``fits`` and fewer than ``too_many`` (0: not known): the ``guess`` (0: there is none), if it is among
    them. Without a bracket it leads no further than to four times the rows: two small costs make a poor line."""
    if guess:
        guess = max(guess, fits + _finest(fits))
    if not too_many:
        return min(guess or 2 * fits, 4 * fits)
    return guess if fits < guess < too_many else (fits + too_many) // 2


def _where_line_meets(costs: dict[int, float], limit: float) -> int:
    """Rows at which the line through the two finite costs nearest to ``limit`` meets it; 0: there are no two."""
    near = sorted((abs(each - limit), rows) for rows, each in costs.items() if math.isfinite(each))[:2]
    if len(near) < 2:
        return 0
    first, second = (rows for _, rows in near)
    slope = (costs[second] - costs[first]) / (second - first)
    return max(1, int(first + (limit - costs[first]) / slope)) if slope > 0 else 0
