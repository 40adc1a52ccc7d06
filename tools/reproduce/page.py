"""The HTML page for a table: rows and columns as in the paper, with the measured numbers below the published ones."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tools.reproduce.measured import Number
from utils.files import read_json, write_text

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em; color: #1c1e21; }
table { border-collapse: collapse; margin: 1em 0 2em; }
th, td { padding: .35em .8em; border-bottom: 1px solid #d8dade; text-align: right; vertical-align: top; }
th:first-child, td:first-child { text-align: left; }
.measured { font-weight: 600; } .far { color: #b3261e; } .near { color: #1b6e3c; } .none { color: #8a8d91; font-weight: 400; }
.remark { color: #5c5f66; font-size: 13px; text-align: left; }
"""

NEAR = 0.5
"""Difference in percent points up to which the page counts a number as equal to the published one."""


def write_page(path: Path, title: str, receipts: Sequence[Mapping[str, Any]]) -> None:
    """Writes a self-contained HTML page.

    Args:
        path: the file to write.
        title: title of the table.
        receipts: receipts of the table's cells, as returned by :func:`~tools.reproduce.receipt.receipt_of`.
    """
    parts = [f"<!doctype html><meta charset=utf-8><title>{html.escape(title)}</title><style>{STYLE}</style>"]
    parts += [
        f"<h1>{html.escape(title)}</h1><p>Published numbers, and below them the numbers measured here: green within "
        f"{NEAR}"
    ]
    parts += [" points of the published number, otherwise red.</p>"]
    columns = dict.fromkeys(receipt["cell"].split("/")[2] for receipt in receipts)
    for column in columns:
        rows = [receipt for receipt in receipts if receipt["cell"].split("/")[2] == column]
        parts.append(f"<h2>{html.escape(column)}</h2><table><tr><th></th>")
        numbers = [[Number.of(values) for values in receipt["numbers"]] for receipt in rows]
        parts += [f"<th>{html.escape(number.split)}<br>{html.escape(number.metric)}</th>" for number in numbers[0]]
        parts.append("</tr>")
        for receipt, entries in zip(rows, numbers, strict=True):
            folder = html.escape(receipt["cell"].replace("/", "-"))
            name = f'<a href="{folder}/receipt.md">{html.escape(receipt["cell"].split("/")[1])}</a>'
            parts.append(f"<tr><td>{name}</td>{''.join(map(_entry, entries))}</tr>")
            remarks = html.escape("; ".join(receipt["remarks"]))
            parts.append(f'<tr><td colspan="{len(entries) + 1}" class="remark">{remarks}</td></tr>')
        parts.append("</table>")
    write_text(path, "\n".join(parts) + "\n")


def read_receipts(folder: Path, table: str) -> list[dict[str, Any]]:
    """Returns the receipts for a table's cells from a folder of reproduced cells. Damaged receipts are skipped."""
    found = []
    for path in sorted(folder.glob("*/receipt.json")):
        try:
            receipt = read_json(path)
            name, _, _ = str(receipt["cell"]).split("/")
            _ = [Number.of(values) for values in receipt["numbers"]], "; ".join(receipt["remarks"])
            if name == table:
                found.append(receipt)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
    return found


def _entry(number: Number) -> str:
    kind = "none" if number.difference is None else "near" if abs(number.difference) <= NEAR else "far"
    return f'<td>{number.published:.1f}<br><span class="measured {kind}">{html.escape(number.text())}</span></td>'
