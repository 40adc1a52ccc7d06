"""Texts as they are printed."""

from __future__ import annotations

import sys


def counted(number: int, one: str, more: str) -> str:
    """A number with its noun: "1 image", "2,000 images"."""
    return f"{number:,} {one if number == 1 else more}"


def printed(text: str, encoding: str | None = None) -> str:
    """A text that names a file, in one line of an encoding, that of standard output by default; other characters are escaped."""
    wanted = encoding or sys.stdout.encoding or "utf-8"
    return text.replace("\n", "\\n").encode(wanted, "backslashreplace").decode(wanted)
