"""The page of a table: rows and columns as in the paper, with the measured numbers below the published ones."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path

from tools.reproduce.measured import Number
from utils.files import write_text

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em; color: #1c1e21; }
table { border-collapse: collapse; margin: 1em 0 2em; }
th, td { padding: .35em .8em; border-bottom: 1px solid #d8dade; text-align: right; vertical-align: top; }
th:first-child, td:first-child { text-align: left; }
.measured { font-weight: 600; } .far { color: #b3261e; } .near { color: #1b6e3c; } .none { color: #8a8d91; font-weight: 400; }
"""

NEAR = 0.5
"""Percent points within which a number counts as the published one on the page."""


def write_page(path: Path, title: str, cells: Mapping[tuple[str, str], Sequence[Number]]) -> None:
    """Write the page as HTML that needs no other file.

    Args:
        path: the file.
        title: of the table.
        cells: numbers by row (the model) and column (the data set).
    """
    parts = [f"<!doctype html><meta charset=utf-8><title>{html.escape(title)}</title><style>{STYLE}</style>"]
    parts += [f"<h1>{html.escape(title)}</h1>", "<p>Published numbers, and below them what was measured here.</p>"]
    for column in dict.fromkeys(column for _, column in cells):
        rows = {row: numbers for (row, of), numbers in cells.items() if of == column}
        parts.append(f"<h2>{html.escape(column)}</h2><table><tr><th></th>")
        first = next(iter(rows.values()))
        parts += [f"<th>{html.escape(number.split)}<br>{html.escape(number.metric)}</th>" for number in first]
        parts.append("</tr>")
        for row, numbers in rows.items():
            parts.append(f"<tr><td>{html.escape(row)}</td>{''.join(map(_entry, numbers))}</tr>")
        parts.append("</table>")
    write_text(path, "\n".join(parts) + "\n")


def _entry(number: Number) -> str:
    kind = "none" if number.difference is None else "near" if abs(number.difference) <= NEAR else "far"
    return f'<td>{number.published:.1f}<br><span class="measured {kind}">{html.escape(number.text())}</span></td>'
