"""Formatting of text for printing."""

from __future__ import annotations

import json
import math
import sys
from typing import Any


def counted(number: int, one: str, more: str) -> str:
    """Formats a number with its noun, such as "1 image" or "2,000 images"."""
    return f"{number:,} {one if number == 1 else more}"


def printed(text: str, encoding: str | None = None) -> str:
    """Formats a text for printing on one line. Escapes line breaks, and characters that ``encoding`` (by default, the encoding of
    standard output) cannot represent."""
    used_encoding = encoding or sys.stdout.encoding or "utf-8"
    return text.replace("\n", "\\n").encode(used_encoding, "backslashreplace").decode(used_encoding)


def printed_json(value: Any) -> str:
    """Formats a JSON value for printing on one line. If standard output cannot represent a character, all characters outside
    ASCII are escaped as in JSON."""
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        return json.dumps(value)
    return text


def is_unicode(text: str) -> bool:
    """Returns False if a text contains half of a surrogate pair. Python represents undecodable bytes in arguments and file names
    in this way."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def format_number(value: float, digits: int = 4) -> str:
    """Formats a number with a few digits, such as 12,500, 0.0123 or 3e-07."""
    if value == 0:
        return "0"
    if not math.isfinite(value):
        return str(value)
    if abs(value) >= 10**digits or float(value).is_integer():
        return f"{value:,.0f}" if abs(value) < 1e9 else f"{value:.{digits}g}"
    return f"{value:.{digits}g}"


def duration(seconds: float) -> str:
    """Formats a duration in its two largest units."""
    whole = max(0, round(seconds))
    for unit, name, small, small_name in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= unit:
            rest = whole % unit // small
            return f"{whole // unit} {name}" + (f" {rest} {small_name}" if rest and whole < 10 * unit else "")
    return f"{whole} s"


def bytes_of(size: float) -> str:
    """Formats bytes in a suitable decimal unit."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            number = size / factor
            return f"{number:.3g} {unit}" if number < 999.5 else f"{number:,.0f} {unit}"
    return f"{size:.0f} B"
