"""Texts as they are printed."""

from __future__ import annotations

import sys


def counted(number: int, one: str, more: str) -> str:
    """A number with its noun: "1 image", "2,000 images"."""
    return f"{number:,} {one if number == 1 else more}"


def printed(text: str, encoding: str | None = None) -> str:
    """A text in one line, in an encoding (by default the encoding of standard output); other characters are escaped."""
    wanted = encoding or sys.stdout.encoding or "utf-8"
    return text.replace("\n", "\\n").encode(wanted, "backslashreplace").decode(wanted)
