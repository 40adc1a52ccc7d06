"""Formatting of text for printing."""

from __future__ import annotations

import sys


def counted(number: int, one: str, more: str) -> str:
    """Formats a number with its noun: "1 image", "2,000 images"."""
    return f"{number:,} {one if number == 1 else more}"


def printed(text: str, encoding: str | None = None) -> str:
    """Returns a text on one line, with characters escaped that ``encoding`` (by default that used for standard output) lacks."""
    wanted = encoding or sys.stdout.encoding or "utf-8"
    return text.replace("\n", "\\n").encode(wanted, "backslashreplace").decode(wanted)
