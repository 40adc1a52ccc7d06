"""Formats rows of text tables."""

from __future__ import annotations

from collections.abc import Sequence


def aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Formats rows with equal numbers of cells as lines: the first column left-aligned, the others right-aligned."""
    first, *others = (max(map(len, column)) for column in zip(*rows, strict=True))
    return [
        "  ".join(
            [f"{row[0]:{first}}", *(f"{cell:>{width}}" for cell, width in zip(row[1:], others, strict=True))]
        ).rstrip()
        for row in rows
    ]


def or_unknown(value: float | None, form: str) -> str:
    """Formats the value with :meth:`str.format`; None becomes "unknown"."""
    return "unknown" if value is None else form.format(value)


def gigabytes(size: float) -> str:
    """Formats bytes in units of 1e9."""
    return f"{size / 1e9:.2f} GB"
