"""Formatting of text for printing."""

from __future__ import annotations

import math
import sys


def counted(number: int, one: str, more: str) -> str:
    """Formats a number with its noun, such as "1 image" or "2,000 images"."""
    return f"{number:,} {one if number == 1 else more}"


def printed(text: str, encoding: str | None = None) -> str:
    """Formats a text for printing on one line. Escapes line breaks, and characters that ``encoding`` (by default, the encoding of
    standard output) cannot represent."""
    used_encoding = encoding or sys.stdout.encoding or "utf-8"
    return text.replace("\n", "\\n").encode(used_encoding, "backslashreplace").decode(used_encoding)


def format_number(value: float, digits: int = 4) -> str:
    """Formats a number with a few digits, such as 12,500, 0.0123 or 3e-07."""
    if value == 0:
        return "0"
    if not math.isfinite(value):
        return str(value)
    if abs(value) >= 10**digits or float(value).is_integer():
        return f"{value:,.0f}" if abs(value) < 1e9 else f"{value:.{digits}g}"
    return f"{value:.{digits}g}"
