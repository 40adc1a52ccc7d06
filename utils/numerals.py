"""Parses numbers in files strictly."""

from __future__ import annotations

import math
import re
from typing import Any

_DECIMAL = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?\s*", re.ASCII | re.IGNORECASE)


def plain_number(value: Any) -> float:
    """Converts a number, or a text that contains a decimal number, to a float.

    Unlike ``float``, it rejects booleans, and texts with underscores (``1_0``), digits of other scripts, ``nan``, ``inf`` and
    ``1e400``.

    Raises:
        TypeError, ValueError, OverflowError: the value is not a number.
    """
    if isinstance(value, bool) or (isinstance(value, str) and not _DECIMAL.fullmatch(value)):
        raise ValueError(f"{value!r:.40} is not a number")
    number = float(value)
    if isinstance(value, str) and math.isinf(number):
        raise ValueError(f"{value!r:.40} is too large")
    return number
